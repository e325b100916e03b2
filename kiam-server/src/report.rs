//! Reports: Kubernetes Events for the owners of pods, and the audit log.
//!
//! ```text
//!  session ──► Reports ──► ledger ──► queue ──► audit    one JSON line per grant, refusal, revocation
//!                     └──► notices ─► queue ──► events   Events on the pod, rate-limited
//! ```
//!
//! A session reports its decisions and the results of its identities, and never waits: both queues
//! are bounded, and items that do not fit are dropped and counted. `events` depends on kube, and
//! `audit` on files; the other modules depend on neither.
//!
//! # Content of the audit log
//!
//! - A **grant**: the policies permit the role of a pod on a connected node, and there are
//!   credentials, which are sent to the agent next. The record has their access key ID. Renewals
//!   are not grants (the server logs each of them: `issued credentials`).
//! - A **refusal**: the policies forbid the role of a pod, or AWS permanently refuses it to the
//!   server (access denied, request rejected). Temporary failures are not refusals.
//! - A **revocation**: a grant ended, because the pod was deleted or the decision changed.
//!
//! Sessions end and restart all the time (an agent is updated, the lifetime of a stream is over),
//! and do not end grants: the agent keeps them. The ledger is therefore kept per node in the
//! server, not in the session: see `ledger`. Each replica records the grants that it made; for a
//! node that moves to another replica, both record the grant and its end. The ledger is lost with
//! the process: after a restart, existing grants are recorded once more.

pub(crate) mod audit;
pub(crate) mod events;
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
pub(crate) use audit::{AuditError, AuditLog};
pub(crate) use metrics::ReportMetrics;
pub(crate) use notices::{Notice, PublishError, Publisher, Reason, publish};
#[cfg(test)]
pub(crate) use record::Action;
pub(crate) use record::Record;

/// The capacity of the queue of audit records.
const MAX_RECORDS: usize = 8192;
/// The capacity of the queue of Events: a few minutes at their rate.
const MAX_NOTICES: usize = 256;

/// The receiver of the reports of all sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    ledger: Option<Arc<Ledger>>,
    notices: Option<Arc<Notices>>,
    clock: Option<Arc<dyn Clock>>,
}

/// The queue of records for a writer.
pub(crate) type Records = tokio::sync::mpsc::Receiver<Record>;

impl Reports {
    /// No reports.
    pub fn off() -> Self {
        Self::default()
    }

    /// Enables the audit log, and returns its queue of records.
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

    /// Enables Events, and returns the queue for [`publish`].
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

    /// Records the end of grants on nodes without a session, until `stop` is cancelled.
    pub async fn run_ledger(self, stop: CancellationToken) {
        match &self.ledger {
            Some(ledger) => ledger.run(stop).await,
            None => stop.cancelled().await,
        }
    }

    /// Returns the numbers of nodes and pods in the ledger.
    #[cfg(test)]
    pub(crate) fn recorded(&self) -> (usize, usize) {
        self.ledger.as_ref().map_or((0, 0), |ledger| ledger.len())
    }

    /// Returns the receiver of the reports of one session of a node.
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

/// The receiver of the reports of one session. Dropping it does not end any grant.
#[derive(Debug)]
pub struct NodeReports {
    reports: Reports,
    node: Arc<str>,
}

impl NodeReports {
    /// Reports the start of the session. Grants of pods that no longer exist have ended.
    pub fn begin(&self, exists: impl Fn(&str) -> bool) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.begin(&self.node, exists);
        }
    }

    /// Reports a new or changed decision about a pod.
    pub fn decided(&self, pod: &Arc<Pod>, outcome: &Outcome) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.decided(&self.node, pod, outcome);
        }
        if let (Some(notices), Outcome::Forbidden { role, reason }) =
            (&self.reports.notices, outcome)
        {
            // The text of kiam's Events.
            let note = format!("failed assuming role {role:?}: {reason}");
            notices.offer(pod, Reason::RoleForbidden, note);
        }
    }

    /// Reports a new state of the identity that a pod was granted.
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
        // A failed renewal with time left for retries does not concern the owner of the pod.
        let concerns_owner = if valid.is_some() { refused } else { failure };
        if let (Some(notices), Some(error)) = (&self.reports.notices, concerns_owner) {
            let message = without_secrets(&error.message, identity);
            let note = format!("failed retrieving credentials: {message}");
            notices.offer(pod, Reason::CredentialError, note);
        }
    }

    /// Reports the deletion of a pod.
    pub fn deleted(&self, pod: &Pod) {
        if let Some(ledger) = &self.reports.ledger {
            ledger.deleted(&self.node, pod.uid.as_str());
        }
    }

    /// Returns whether [`NodeReports::identity`] has any effect.
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

/// Redacts the external ID: AWS quotes invalid parameters in its messages.
fn without_secrets(message: &str, identity: &Identity) -> String {
    match identity.external_id.as_deref() {
        Some(id) if !id.is_empty() => message.replace(id, "[redacted]"),
        _ => message.to_owned(),
    }
}
