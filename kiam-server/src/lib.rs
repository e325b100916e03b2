//! kiam's server: decides which pods may have which IAM roles, gets the credentials, and streams
//! them to the agents of the pods' nodes.
//!
//! ```text
//!  source ──► cluster ──► policy ──► node ──► agents
//!                            │         ▲
//!                         identity     │ credentials ◄── sts
//!                                      └─► report ──► Events, the audit log
//! ```
//!
//! `cluster`, `policy`, `identity` and `credentials` know neither kube, tonic nor AWS: `source`,
//! `node` and `sts` are their edges.

pub mod app;
pub mod args;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod credentials;
mod decision;
pub mod identity;
pub mod instance;
pub mod legacy;
pub mod node;
pub mod permitted;
pub mod policy;
pub mod report;
pub mod source;
pub mod status;
pub mod sts;
pub mod taint;
#[cfg(test)]
mod testing;
