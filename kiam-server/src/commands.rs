//! What the server's program does other than to serve.

mod health;

pub use health::{HealthError, health};
