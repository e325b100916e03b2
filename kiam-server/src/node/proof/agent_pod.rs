//! The subject of a token.

use kiam_common::pod_uid::PodUid;

use crate::node::NodeName;

/// The pod of an agent, and the node that it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentPod {
    pub(super) pod_uid: PodUid,
    pub(super) node: NodeName,
}
