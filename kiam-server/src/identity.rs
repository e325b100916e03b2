//! The identity of a session, which distinguishes one set of credentials from another.

use std::time::Duration;

use kiam_common::role::RoleArn;

/// All parameters of a session. Pods of the same identity share credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The role to assume.
    pub role: RoleArn,
    /// The name of the session in CloudTrail.
    pub session_name: String,
    /// The external ID that the trust policy of the role may require. Treated as a secret.
    pub external_id: Option<Box<str>>,
    /// The requested duration.
    pub duration: Duration,
    /// The session tags, in the order of `--session-tags`.
    pub tags: Vec<Tag>,
    /// The source identity of the session in CloudTrail.
    pub source_identity: Option<String>,
}

/// A session tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag {
    pub key: &'static str,
    pub value: Box<str>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("role", &self.role)
            .field("session_name", &self.session_name)
            .field(
                "external_id",
                &self.external_id.as_ref().map(|_| "[redacted]"),
            )
            .field("duration", &self.duration)
            .field("tags", &self.tags)
            .field("source_identity", &self.source_identity)
            .finish()
    }
}
