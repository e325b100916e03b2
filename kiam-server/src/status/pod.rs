//! What this server knows of one pod, for `kiam-server explain`. No secret is in it.

use kiam_common::page::cut;
use serde::{Deserialize, Serialize};

use super::{Held, Status};
use crate::policy::{Outcome, decide};

/// Before a pod's UID.
pub const PATH: &str = "/status/pods/";

/// One pod, as a server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node; none until it is bound.
    pub node: Option<String>,
    /// Whether that node's agent has a stream open to this server.
    pub attached: bool,
    /// Whether that agent says that it guards the node.
    pub guarded: bool,
    /// What was decided: as [`Outcome::as_label`].
    pub outcome: String,
    /// Why, where it was not granted.
    pub reason: Option<String>,
    /// The credentials, where they are held.
    pub credentials: Option<Held>,
    /// What this server completes short role names with.
    pub role_base_arn: Option<String>,
}

impl Status {
    /// A pod by its UID, if it is known.
    pub(super) fn pod(&self, uid: &str) -> Option<PodStatus> {
        let member = self.cluster.member(uid)?;
        let outcome = decide(&member, &self.settings);
        let agents = self.streams.newest();
        let agent = agents.iter().find(|agent| {
            let node = member.pod.node.as_deref();
            node == Some(agent.node.as_str())
        });
        let held = match &outcome {
            Outcome::Granted(identity) => {
                let held = self.store.snapshots();
                let own = held.iter().find(|(other, _)| other == identity);
                own.map(|(identity, snapshot)| Held::of(identity, snapshot, self.clock.now()))
            }
            _ => None,
        };
        let label = outcome.as_label().to_owned();
        let reason = match outcome {
            Outcome::Granted(_) | Outcome::NoRole => None,
            Outcome::Forbidden { reason, .. } => Some(cut(&reason)),
            Outcome::Undecided { awaiting } => Some(format!("awaiting {}", cut(&awaiting))),
        };
        let base = self.settings.base_arn.as_ref();
        Some(PodStatus {
            namespace: cut(&member.pod.namespace),
            name: cut(&member.pod.name),
            node: member.pod.node.as_deref().map(cut),
            attached: agent.is_some(),
            guarded: agent.is_some_and(|agent| agent.guarded),
            outcome: label,
            reason,
            credentials: held,
            role_base_arn: base.map(|base| base.as_str().to_owned()),
        })
    }
}
