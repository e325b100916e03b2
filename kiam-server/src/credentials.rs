//! The credentials of every identity that a pod on an attached node was granted.
//!
//! One identity has one entry and one refresh loop: however many readers there are, there is one
//! call to AWS at a time for it, detached from all of them. Failures are remembered and backed
//! off from, while what is still valid stays in use. An entry that nobody reads any more is
//! dropped. Where credentials come from is an [`Issuer`]; the module knows neither AWS nor tonic.

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

/// Where credentials come from: STS, or a test's double of it.
#[async_trait::async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// Asks for new credentials, once, without retries of its own.
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError>;
}

/// Why credentials were not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IssueError {
    /// What kind of failure it is: how soon another try makes sense.
    pub kind: IssueErrorKind,
    /// What AWS said, on one line, without secrets.
    pub message: String,
}

/// Kinds of failures, by what helps against them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IssueErrorKind {
    /// AWS asks for fewer calls.
    Throttled,
    /// The role does not trust the server, or does not exist: STS does not say which.
    AccessDenied,
    /// AWS refuses the request itself (a session longer than the role allows, say).
    Rejected,
    /// The server has no valid credentials of its own.
    ServerCredentials,
    /// AWS was not reached, or did not answer in time.
    Network,
    /// AWS answered, and it makes no sense (already expired credentials, a fault of its own).
    Fault,
}

impl IssueErrorKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Throttled,
        Self::AccessDenied,
        Self::Rejected,
        Self::ServerCredentials,
        Self::Network,
        Self::Fault,
    ];

    /// For metrics.
    #[must_use]
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

    /// Whether another try cannot help until somebody changes something in AWS or the cluster.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::AccessDenied | Self::Rejected)
    }
}

impl fmt::Display for IssueErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_label())
    }
}
