//! What the server's program does other than to serve.

mod explain;
mod health;

pub use explain::{ExplainError, Explanation, Step, Verdict, explain};
pub use health::{HealthError, health};
