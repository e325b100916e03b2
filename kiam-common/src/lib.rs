//! What kiam's agent and server agree on.
//!
//! - [`api`]: the generated gRPC API: the node stream, and kiam v4's service
//! - [`codec`]: how its messages are put on a stream
//! - [`role`]: IAM role names and ARNs, as annotations spell them
//! - [`credentials`]: session credentials, which never print or outlive their use
//! - [`tls`]: mutual TLS whose certificates are replaced while it runs
//! - [`telemetry`], [`admin`], [`page`], [`readiness`]: logs, metrics, status, health
//! - [`listen`]: a port that is handed from one process to the next
//! - [`limits`]: what the kernel lets a process have
//! - [`flags`], [`server_address`], [`duration`]: command-line flags that both programs have
//! - [`tasks`], [`backoff`], [`watch`]: supervised background work, waiting between tries, and
//!   for files to change
//! - [`causes`]: an error in one sentence
//!
//! The domain modules (`role`, `credentials`) know neither tonic, hyper, kube nor AWS.

pub mod admin;
pub mod api;
pub mod backoff;
pub mod causes;
pub mod cli;
pub mod codec;
pub mod credentials;
pub mod duration;
pub mod flags;
pub mod http_client;
pub mod limits;
pub mod listen;
pub mod page;
pub mod readiness;
pub mod role;
pub mod server_address;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod watch;
