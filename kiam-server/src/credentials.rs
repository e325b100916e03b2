//! The credentials of every identity that a pod of a connected node was granted.
//!
//! Each identity has one entry and one refresh loop, regardless of the number of readers: at most
//! one call to AWS is in flight for it, and no reader can cancel it. After a failure the loop backs
//! off, and valid credentials stay in use. An entry without readers is dropped. The credentials
//! come from an [`Issuer`]; the module does not depend on AWS or tonic.

mod ages;
mod entry;
mod issuing;
mod metrics;
mod schedule;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;

use kiam_common::credentials::SessionCredentials;

use crate::identity::Identity;
pub use ages::CredentialAges;
pub use entry::{Failure, Snapshot};
pub use metrics::StoreMetrics;
pub use schedule::{ExpiryContract, ScheduleError};
pub use store::{Lease, Limits, Store};

/// The source of credentials: STS, or a test double.
#[async_trait::async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// Requests new credentials once, without retries.
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError>;
}

/// The error of a request for credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IssueError {
    /// The kind of the failure, which determines the wait before the next attempt.
    pub kind: IssueErrorKind,
    /// The message of AWS, on one line, without secrets.
    pub message: String,
}

/// Kinds of failures, by remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IssueErrorKind {
    /// AWS throttles calls.
    Throttled,
    /// The role does not trust the server, or does not exist: STS does not distinguish the two.
    AccessDenied,
    /// AWS rejects the request, for example a session longer than the role allows.
    Rejected,
    /// The server has no valid AWS credentials.
    ServerCredentials,
    /// AWS was unreachable, or did not respond in time.
    Network,
    /// AWS returned an internal error or an invalid response, such as expired credentials.
    Fault,
}

impl IssueErrorKind {
    pub const ALL: [Self; 6] = [
        Self::Throttled,
        Self::AccessDenied,
        Self::Rejected,
        Self::ServerCredentials,
        Self::Network,
        Self::Fault,
    ];

    /// Returns the value of the label `kind` of metrics.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::AccessDenied => "access_denied",
            Self::Rejected => "rejected",
            Self::ServerCredentials => "server_credentials",
            Self::Network => "network",
            Self::Fault => "fault",
        }
    }

    /// Returns whether retries fail until someone changes something in AWS or in the cluster.
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::AccessDenied | Self::Rejected)
    }
}

impl fmt::Display for IssueErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}
