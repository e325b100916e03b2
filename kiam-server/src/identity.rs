//! What distinguishes one set of credentials from another.

use std::time::Duration;

use kiam_common::role::RoleArn;

/// Everything that goes into a session. Pods of the same identity share their credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The role to assume.
    pub role: RoleArn,
    /// Names the session in AWS's logs.
    pub session_name: String,
    /// What the role's trust policy may ask for. Treated as a secret.
    pub external_id: Option<Box<str>>,
    /// How long the session is to last.
    pub duration: Duration,
    /// Tags of the session, in the order in which they were chosen.
    pub tags: Vec<Tag>,
    /// Who is behind the session, for AWS's logs.
    pub source_identity: Option<String>,
}

/// A session tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Its key.
    pub key: &'static str,
    /// Its value.
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
