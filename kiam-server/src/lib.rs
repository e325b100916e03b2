//! The server: decides which pods may have which IAM roles, gets their credentials from STS, and
//! streams them to the agents on the nodes of the pods.
//!
//! ```text
//!  source ──► cluster ──► policy ──► node ──► agents
//!                            │         ▲
//!                         identity     │ credentials ◄── sts
//!                                      └─► report ──► Events, the audit log
//! ```
//!
//! `cluster`, `policy`, `identity` and `credentials` do not depend on kube, tonic or AWS; `source`,
//! `node` and `sts` connect them to those.

pub mod app;
pub mod args;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod credentials;
mod decision_log;
mod ec2;
pub mod identity;
mod legacy;
pub mod node;
pub mod permitted;
pub mod policy;
mod report;
mod source;
mod status;
mod sts;
mod taint;
#[cfg(test)]
mod testing;
