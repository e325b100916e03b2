//! Who is at the other end of a connection: which pod.

mod address;
mod kernel;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::time::Instant;

pub use address::AddressIdentity;
pub use kernel::KernelIdentity;

/// A pod's `metadata.uid`, or what stands for it in a static pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Box<str>);

impl PodUid {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How the node knows a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodRef {
    /// By its UID.
    Uid(PodUid),
    /// A static pod, by the hash of its file: its mirror has it as an annotation.
    StaticHash(PodUid),
    /// By the address that it calls from, where the kernel tells no more.
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

/// Why a connection is of no pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The kernel's word on it is gone, or there never was one.
    #[error("the kernel tells of no pod of this node that made this connection; connect again")]
    Unattested,
    /// It was made from a cgroup that is no pod's.
    #[error("this connection was made by a process that is in no pod")]
    NotAPod,
    /// Its cgroup is gone. Another container may have the connection by now.
    #[error("the container that made this connection is gone; connect again")]
    Gone,
    /// The kernel did not tell.
    #[error("the agent cannot tell which pod made this connection; see its log")]
    Unknown,
}

impl Refusal {
    /// For metrics.
    #[must_use]
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::Unattested => "unattested",
            Self::NotAPod => "not_a_pod",
            Self::Gone => "cgroup_gone",
            Self::Unknown => "unknown",
        }
    }
}

/// Tells who is at the other end of a connection.
pub trait Identify: Send + Sync + 'static {
    /// The pod that made the connection from `peer`. Asked once for each connection.
    ///
    /// # Errors
    /// When no pod of this node did.
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal>;

    /// Told, at times, that at `since` no connection was waiting to be accepted: all that had come about
    /// by then have been identified.
    fn none_waits(&self, since: Instant) {
        let _ = since;
    }
}
