//! Updates: messages of a stream, in the terms of the agent.

use std::net::IpAddr;

use kiam_common::credentials::SessionCredentials;
use kiam_common::outcome::Outcome;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::RoleArn;

/// Properties of a pod, regardless of what it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `spec.serviceAccountName`.
    pub service_account: Box<str>,
    /// `status.podIPs`; empty until published.
    pub addresses: Box<[IpAddr]>,
    /// `spec.hostNetwork`: the addresses are the node's, and identify no pod.
    pub host_network: bool,
    /// Name of a static pod's cgroup, in place of the UID.
    pub static_hash: Option<Box<str>>,
}

/// A role that a pod was granted, and which credentials are the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedRole {
    /// The role.
    pub role: RoleArn,
    /// The number of its identity, which has a meaning within one stream only.
    pub identity: u64,
}

/// Reason why an identity has no new credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error, on one line.
    pub error: Box<str>,
    /// True if a retry cannot help until the configuration is changed.
    pub permanent: bool,
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A pod was added or changed.
    Applied(PodFacts, Outcome<GrantedRole>),
    /// A pod was removed.
    Removed(PodUid),
    /// New credentials of an identity.
    Issued {
        /// The identity.
        identity: u64,
        /// The credentials.
        credentials: SessionCredentials,
    },
    /// A failure to get credentials of an identity.
    Failed {
        /// The identity.
        identity: u64,
        /// The failure.
        failure: Failure,
    },
    /// The server has sent its complete state.
    Synced,
}
