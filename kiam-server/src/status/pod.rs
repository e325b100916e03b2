//! The status of one pod, for `kiam-server explain`. It contains no secrets.

use kiam_common::page::truncate;
use serde::{Deserialize, Serialize};

use super::{HeldCredentials, Status};
use crate::policy::{Outcome, decide};

/// The path before the UID of a pod.
pub(crate) const PATH: &str = "/status/pods/";

/// The status of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodStatus {
    pub namespace: String,
    pub name: String,
    /// The node; `None` until the pod is bound.
    pub node: Option<String>,
    /// True if the agent of the node is connected to this server.
    pub attached: bool,
    /// True if the agent reports that it guards the node.
    pub guarded: bool,
    /// The decision, see [`Outcome::as_label`].
    pub outcome: String,
    /// The reason, unless the role was granted.
    pub reason: Option<String>,
    /// The credentials, if this server holds them.
    pub credentials: Option<HeldCredentials>,
    /// The base ARN of this server.
    pub role_base_arn: Option<String>,
}

impl Status {
    /// Returns the status of a pod, if it is known.
    pub(super) fn pod(&self, uid: &str) -> Option<PodStatus> {
        let context = self.cluster.context(uid)?;
        let outcome = decide(&context, &self.settings);
        let agents = self.streams.newest();
        let agent = agents.iter().find(|agent| {
            let node = context.pod.node.as_deref();
            node == Some(agent.node.as_str())
        });
        let held = match &outcome {
            Outcome::Granted(identity) => {
                let held = self.store.snapshots();
                let own = held.iter().find(|(other, _)| other == identity);
                own.map(|(identity, snapshot)| {
                    HeldCredentials::of(identity, snapshot, self.clock.now())
                })
            }
            _ => None,
        };
        let label = outcome.as_label().to_owned();
        let reason = match outcome {
            Outcome::Granted(_) | Outcome::NoRole => None,
            Outcome::Forbidden { reason, .. } => Some(truncate(&reason)),
            Outcome::Undecided { awaiting } => Some(format!("awaiting {}", truncate(&awaiting))),
        };
        let base = self.settings.base_arn.as_ref();
        Some(PodStatus {
            namespace: truncate(&context.pod.namespace),
            name: truncate(&context.pod.name),
            node: context.pod.node.as_deref().map(truncate),
            attached: agent.is_some(),
            guarded: agent.is_some_and(|agent| agent.guarded),
            outcome: label,
            reason,
            credentials: held,
            role_base_arn: base.map(|base| base.as_str().to_owned()),
        })
    }
}
