//! The caller of a connection.

use std::net::IpAddr;

use crate::caller::{PodRef, Unidentified};

/// The caller of a connection, identified when the connection was accepted.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) who: Result<PodRef, Unidentified>,
    pub(super) source: IpAddr,
    /// True if the connection comes from the agent's own address, and so from the node.
    pub(super) on_node: bool,
}

impl Caller {
    /// Returns whether the caller is a process of the node outside of pods, such as a kubelet
    /// probe.
    pub(super) const fn is_node(&self) -> bool {
        use Unidentified::{NotAPod, Unattested};
        let no_pod = matches!(self.who, Err(Unattested | NotAPod) | Ok(PodRef::Address(_)));
        self.on_node && no_pod
    }
}
