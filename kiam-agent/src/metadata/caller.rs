//! The other end of a connection.

use std::net::IpAddr;

use crate::caller::{self, PodRef};

/// Who is at the other end of a connection: asked once, when it was accepted.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) who: Result<PodRef, caller::Refusal>,
    pub(super) source: IpAddr,
    /// Whether it comes from the agent's own address: from the node itself.
    pub(super) on_node: bool,
}

impl Caller {
    /// Whether it is a probe of the node's, the kubelet's for one: of the node itself, and no pod's.
    pub(super) const fn is_node(&self) -> bool {
        use caller::Refusal::{NotAPod, Unattested};
        let no_pod = matches!(self.who, Err(Unattested | NotAPod) | Ok(PodRef::Address(_)));
        self.on_node && no_pod
    }
}
