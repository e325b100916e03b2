//! What a token proves.

use crate::node::NodeName;

/// An agent's pod, and the node that it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentPod {
    pub(super) pod_uid: Box<str>,
    pub(super) node: NodeName,
}
