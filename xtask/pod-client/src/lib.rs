//! Requests and other traffic from inside a pod, and the types of their results.
//!
//! The kernel programs know a process by its cgroup, so a pod's request has to come from a process
//! in the pod: the program of this package. Each module is one of its commands, with the types that
//! it prints as JSON.
//!
//! ```text
//! probe      one request, and its answer
//! ask        repeated requests for credentials, as SDKs send them
//! steady     requests at a steady rate
//! flood      as many requests as will go
//! limit      a bare hyper server beside the agent, for comparison
//! work       other traffic, which the kernel programs see too
//! histogram  durations, counted
//! ```

pub mod ask;
pub mod flood;
mod histogram;
pub mod limit;
pub mod probe;
pub mod steady;
pub mod work;

pub use histogram::Histogram;
