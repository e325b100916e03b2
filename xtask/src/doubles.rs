//! Stand-ins for what a test cannot have: AWS STS, and the node's own metadata service.
//!
//! They serve sockets that the caller made, in whatever network namespace, so that the same
//! double runs in a sandbox, in a demo and in a unit test. Each serves on a thread of its own
//! until it is dropped.

mod http;
pub mod imds;
pub mod sigv4;
pub mod sts;

pub use http::Traffic;
