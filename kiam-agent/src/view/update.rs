//! What a stream says, in the agent's own terms.

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;

/// A pod's `metadata.uid`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(Arc<str>);

impl Uid {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Borrow<str> for Uid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a pod is, whatever it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.namespace`.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `spec.serviceAccountName`.
    pub service_account: Box<str>,
    /// `status.podIPs`; empty until they are published.
    pub addresses: Box<[IpAddr]>,
    /// `spec.hostNetwork`: the addresses are the node's, and identify nothing.
    pub host_network: bool,
    /// What a static pod's cgroup is named by, instead of the UID.
    pub static_hash: Option<Box<str>>,
}

/// What the server decided about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Neither the pod nor its service account names a role.
    NoRole,
    /// The policies permit the role.
    Granted {
        /// The role.
        role: RoleArn,
        /// Which credentials are the pod's. Means something within one stream only.
        identity: u64,
    },
    /// A policy refuses the role.
    Forbidden {
        /// As annotated.
        role: Box<str>,
        /// One line for the pod's owner.
        reason: Box<str>,
    },
    /// Something that the decision rests on is not known yet.
    Undecided {
        /// What.
        awaiting: Box<str>,
    },
}

/// Why an identity has no new credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong, on one line.
    pub error: Box<str>,
    /// Whether trying again cannot help until somebody changes something.
    pub permanent: bool,
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A pod is there, or has changed.
    Applied(PodFacts, Decision),
    /// A pod is gone.
    Removed(Uid),
    /// An identity's credentials, first or renewed.
    Issued {
        /// Whose.
        identity: u64,
        /// The credentials.
        credentials: SessionCredentials,
    },
    /// An identity's credentials could not be obtained.
    Failed {
        /// Whose.
        identity: u64,
        /// Why.
        failure: Failure,
    },
    /// All that the server knows has been sent.
    Synced,
}
