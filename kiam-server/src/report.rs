//! What is told to others than the agent: Kubernetes Events to a pod's owner, and the audit log.
//!
//! ```text
//!  session ──► Reports ──► ledger ──► queue ──► audit    one JSON line per grant, refusal, revocation
//!                     └──► notices ─► queue ──► events   Events on the pod, few of them
//! ```
//!
//! A session says what it decided and what became of its identities, and never waits: both queues
//! are bounded, and what finds no room is dropped and counted. `events` is the edge to kube,
//! `audit` the edge to files; the rest knows neither.
//!
//! # What the audit log holds
//!
//! - A **grant**: a pod of an attached node is permitted a role, and there are credentials for it,
//!   which its agent is sent next. The record has the access key id of these; renewals are no new
//!   grant (the server's log names each: `issued credentials`).
//! - A **refusal**: the policies refuse a pod its role, or AWS refuses the server the role for good
//!   (access denied, request rejected). Failures that pass by themselves are none.
//! - A **revocation**: a grant has ended: the pod is gone, or what decided about it has changed.
//!
//! Sessions end and begin again all the time (an agent is updated, a stream ends for age), and a
//! grant does not end with them: the agent keeps it. So what was recorded lives in the replica, by
//! node, not in the session: see `ledger`. Each replica records what it granted itself; a node that
//! moves to another replica has a grant recorded there too, and both record its end. With the
//! process the ledger ends: after a restart, grants that go on are recorded once more.

pub mod audit;
pub mod events;
mod ledger;
mod metrics;
mod notices;
mod queue;
mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::ledger::Ledger;
use self::notices::Notices;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::object::Pod;
use crate::credentials::Snapshot;
use crate::identity::Identity;
use crate::policy::Outcome;
pub use audit::{AuditError, AuditLog};
pub use metrics::ReportMetrics;
pub use notices::{Notice, PublishError, Publisher, Reason, publish};
pub use record::{Action, Record};

/// Audit records that wait to be written.
const MAX_RECORDS: usize = 8192;
/// Events that wait to be published: at their rate, a few minutes' worth.
const MAX_NOTICES: usize = 256;

/// Takes reports of all sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    ledger: Option<Arc<Ledger>>,
    notices: Option<Arc<Notices>>,
    clock: Option<Arc<dyn Clock>>,
}

/// The records that a writer is to write.
pub type Records = tokio::sync::mpsc::Receiver<Record>;

impl Reports {
    /// Tells nobody anything.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// As this, and with an audit log: whoever holds the records writes them.
    #[must_use]
    pub fn with_audit(
        mut self,
        cluster: Arc<Cluster>,
        clock: Arc<dyn Clock>,
        metrics: &ReportMetrics,
    ) -> (Self, Records) {
        let (queue, records) = queue::bounded(MAX_RECORDS, metrics.audit("dropped"));
        let ledger = Ledger::new(cluster, Arc::clone(&clock), queue);
        self.ledger = Some(Arc::new(ledger));
        self.clock = Some(clock);
        (self, records)
    }

    /// As this, and with Events: whoever holds the notices [publishes](publish) them.
    #[must_use]
    pub fn with_events(
        mut self,
        clock: Arc<dyn Clock>,
        metrics: &ReportMetrics,
    ) -> (Self, tokio::sync::mpsc::Receiver<Notice>) {
        let (queue, from) = queue::bounded(MAX_NOTICES, metrics.event("dropped"));
        let notices = Notices::new(queue, metrics.event("suppressed"));
        self.notices = Some(Arc::new(notices));
        self.clock = Some(clock);
        (self, from)
    }

    /// Records the end of grants on nodes whose agents are not attached, until told to stop.
    pub async fn follow(self, stop: CancellationToken) {
        match &self.ledger {
            Some(ledger) => ledger.follow(stop).await,
            None => stop.cancelled().await,
        }
    }

    /// How many nodes and pods the ledger holds.
    #[cfg(test)]
    pub(crate) fn recorded(&self) -> (usize, usize) {
        self.ledger.as_ref().map_or((0, 0), |ledger| ledger.len())
    }

    /// For a session of this node, for as long as it lasts.
    #[must_use]
    pub fn of_node(&self, node: Arc<str>) -> NodeReports {
        if let Some(ledger) = &self.ledger {
            ledger.attach(&node);
        }
        NodeReports {
            reports: self.clone(),
            node,
        }
    }
}

/// Takes one session's reports; dropping it ends them, and ends no grant.
#[derive(Debug)]
pub struct NodeReports {
    reports: Reports,
    node: Arc<str>,
}

impl NodeReports {
    /// The session begins: pods that are not `there` were granted in vain by those before it.
    pub fn begin(&self, there: impl Fn(&str) -> bool) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.begin(&self.node, there);
        }
    }

    /// A pod was decided about, for the first time or anew.
    pub fn decided(&self, pod: &Arc<Pod>, outcome: &Outcome) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.decided(&self.node, pod, outcome);
        }
        if let (Some(notices), Outcome::Forbidden { role, reason }) =
            (&self.reports.notices, outcome)
        {
            // kiam's words.
            let note = format!("failed assuming role {role:?}: {reason}");
            notices.offer(pod, Reason::RoleForbidden, note);
        }
    }

    /// The identity that a pod was granted has credentials, or none, or new ones.
    pub fn identity(&self, pod: &Arc<Pod>, identity: &Arc<Identity>, snapshot: &Snapshot) {
        let Some(clock) = &self.reports.clock else {
            return;
        };
        let now = clock.now();
        let credentials = snapshot.credentials.as_deref();
        let valid = credentials.filter(|credentials| !credentials.remaining(now).is_zero());
        let failure = snapshot.failure.as_deref().map(|failure| &failure.error);
        let refused = failure.filter(|error| error.kind.is_permanent());
        if let Some(ledger) = &self.reports.ledger {
            match (valid, refused) {
                (Some(valid), _) => {
                    ledger.granted(&self.node, pod, identity, &valid.access_key_id);
                }
                (None, Some(error)) => {
                    let reason = without_secrets(&error.message, identity);
                    ledger.refused(&self.node, pod, identity, reason);
                }
                (None, None) => {}
            }
        }
        // A renewal that will be tried again in time is nothing to the pod's owner.
        let concerns_owner = if valid.is_some() { refused } else { failure };
        if let (Some(notices), Some(error)) = (&self.reports.notices, concerns_owner) {
            let message = without_secrets(&error.message, identity);
            let note = format!("failed retrieving credentials: {message}");
            notices.offer(pod, Reason::CredentialError, note);
        }
    }

    /// A pod is gone.
    pub fn gone(&self, pod: &Pod) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.gone(&self.node, &pod.uid);
        }
    }

    /// Whether [`NodeReports::identity`] has any effect.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.reports.clock.is_some()
    }
}

impl Drop for NodeReports {
    fn drop(&mut self) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.detach(&self.node);
        }
    }
}

/// AWS quotes a parameter that it finds invalid, an external id too.
fn without_secrets(message: &str, identity: &Identity) -> String {
    match identity.external_id.as_deref() {
        Some(id) if !id.is_empty() => message.replace(id, "[redacted]"),
        _ => message.to_owned(),
    }
}
