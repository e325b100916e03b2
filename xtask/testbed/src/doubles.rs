//! Stand-ins for what a test cannot have: AWS STS, the node's own metadata service, a cluster's
//! DNS, and a network that is slow.
//!
//! They serve sockets that the caller made, in whatever network namespace, so that the same
//! double runs in a sandbox, in a demo and in a unit test. Each serves on a thread of its own
//! until it is dropped.

pub mod dns;
mod http;
pub mod imds;
pub mod proxy;
pub mod sigv4;
pub mod sts;

pub use http::Traffic;
