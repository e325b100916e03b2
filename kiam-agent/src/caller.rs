//! Identification of the pod at the other end of a connection.

mod address;
mod kernel;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use kiam_common::pod_uid::PodUid;
use tokio::time::Instant;

pub(crate) use address::AddressIdentity;
pub use kernel::KernelIdentity;

/// Identity of a pod on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodRef {
    /// A pod, by its UID.
    Uid(PodUid),
    /// A static pod, by the hash of its manifest, which its mirror pod has as an annotation.
    StaticHash(PodUid),
    /// A pod, by its source address: with `--redirect=iptables`.
    Address(IpAddr),
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => f.write_str(uid.as_str()),
            Self::StaticHash(hash) => write!(f, "static pod {}", hash.as_str()),
            Self::Address(address) => write!(f, "with the address {address}"),
        }
    }
}

/// Reason why a connection cannot be assigned to a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unidentified {
    /// The attestation of the connection is missing or already consumed.
    #[error(
        "the kernel has no attestation for this connection from a pod of this node; connect again"
    )]
    Unattested,
    /// The connection was made from a cgroup that does not belong to a pod.
    #[error("this connection was made by a process outside of any pod")]
    NotAPod,
    /// The cgroup is gone. Another container may hold the connection by now.
    #[error("the container that made this connection is gone; connect again")]
    Gone,
    /// The kernel could not be queried.
    #[error("cannot identify the pod that made this connection; see the log of the agent")]
    Unknown,
}

impl Unidentified {
    /// Returns the value of the label `reason`.
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::Unattested => "unattested",
            Self::NotAPod => "not_a_pod",
            Self::Gone => "cgroup_gone",
            Self::Unknown => "unknown",
        }
    }
}

/// Identification of callers.
pub trait Identify: Send + Sync + 'static {
    /// Returns the pod that made the connection from `peer`. Called once per connection.
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified>;

    /// Reports that at `since` the accept queue was empty: all connections established by then have
    /// been identified.
    fn accept_queue_empty(&self, since: Instant) {
        let _ = since;
    }
}
