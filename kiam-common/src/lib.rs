//! Code that kiam's agent and server share.
//!
//! - [`program`], [`cli`], [`flags`], [`server_address`], [`duration`]: `main`, the command line,
//!   and the flags of both programs
//! - [`api`], [`codec`]: the generated gRPC API (the node stream, and kiam v4's service) and its
//!   codec
//! - [`role`], [`outcome`], [`pod_uid`], [`metadata_address`]: the terms of the domain
//! - [`credentials`]: session credentials, which are zeroed on drop and never printed
//! - [`tls`]: mutual TLS whose certificates can change at run time
//! - [`telemetry`], [`metrics`], [`admin`], [`page`], [`readiness`]: logs, metrics, status pages,
//!   probes
//! - [`listen`], [`limits`]: handover of a port, resource limits
//! - [`tasks`], [`backoff`], [`watch`]: supervised tasks, waits between retries, changes to files
//! - [`error_chain`]: an error and its sources on one line
//!
//! The domain modules (`role`, `outcome`, `pod_uid`, `credentials`) do not depend on tonic, hyper,
//! kube or AWS.
#![warn(missing_docs)]

pub mod admin;
pub mod api;
pub mod backoff;
pub mod cli;
pub mod codec;
pub mod credentials;
pub mod duration;
pub mod error_chain;
pub mod flags;
pub mod http_client;
pub mod limits;
pub mod listen;
pub mod metadata_address;
pub mod metrics;
pub mod outcome;
pub mod page;
pub mod pod_uid;
pub mod program;
pub mod readiness;
pub mod role;
pub mod server_address;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod watch;
