//! One stream: decides about the pods of the node, and sends the changes.
//!
//! A session has no queue of changes. On each wake-up it decides about all pods of the node, and
//! sends the difference to what it sent before; wake-ups while it sends are coalesced into one. A
//! slow agent therefore costs the server the state of one node, and an agent always has the
//! decisions for some actual state of the cluster.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiam_common::api::node::v1::WatchResponse;
use kiam_common::pod_uid::PodUid;
use prometheus::IntCounterVec;
use tokio::sync::mpsc;
use tonic::Status;

use super::message;
use super::streams::StreamMetrics;
use crate::cluster::{Cluster, PodContext, Signal};
use crate::credentials::{Lease, Store};
use crate::decision_log;
use crate::identity::Identity;
use crate::policy::{Outcome, Settings, decide};
use crate::report::{NodeReports, Reports};

/// A message of a stream. Boxed, because a channel allocates space for 32 messages.
pub type Message = Result<Box<WatchResponse>, Status>;
/// The channel for the messages of a session.
pub type Sender = mpsc::Sender<Message>;

/// The state that was sent to one agent.
#[derive(Debug)]
pub struct Session {
    node: Arc<str>,
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    settings: Arc<Settings>,
    signal: Signal,
    reports: NodeReports,
    decisions: Option<IntCounterVec>,
    pods: BTreeMap<PodUid, PodState>,
    identities: HashMap<Arc<Identity>, LeasedIdentity>,
    next_identity: u64,
    synced: bool,
}

#[derive(Debug)]
struct PodState {
    /// The objects that decided.
    context: PodContext,
    outcome: Outcome,
    /// The version of its identity in the last report.
    reported: u64,
}

#[derive(Debug)]
struct LeasedIdentity {
    number: u64,
    /// The number of pods on the stream that are granted the identity.
    pods: usize,
    lease: Lease,
    /// The version that was sent.
    sent: u64,
}

/// The error of a closed stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Session {
    /// A session for the agent of `node`. `signal` is woken when there may be changes.
    pub fn new(
        node: Arc<str>,
        cluster: Arc<Cluster>,
        store: Arc<Store>,
        settings: Arc<Settings>,
        signal: Signal,
    ) -> Self {
        let reports = Reports::off().of_node(Arc::clone(&node));
        Self {
            node,
            cluster,
            store,
            settings,
            signal,
            reports,
            decisions: None,
            pods: BTreeMap::new(),
            identities: HashMap::new(),
            next_identity: 1,
            synced: false,
        }
    }

    /// Reports the decisions, and the results of granted identities.
    pub(super) fn with_reports(mut self, reports: &Reports) -> Self {
        self.reports = reports.of_node(Arc::clone(&self.node));
        self
    }

    /// Counts the decisions.
    pub(super) fn with_metrics(mut self, metrics: &StreamMetrics) -> Self {
        self.decisions = Some(metrics.decisions.clone());
        self
    }

    /// Sends the changes since the last call. The first call sends everything, then `Synced`.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn send_changes(&mut self, to: &Sender) -> Result<(), Closed> {
        for message in self.changes() {
            let message = Ok(Box::new(message));
            to.send(message).await.map_err(|_closed| Closed)?;
        }
        Ok(())
    }

    /// Returns the changes: deleted pods, then new and changed pods, then credentials. Credentials
    /// always follow a pod that was granted their identity.
    fn changes(&mut self) -> Vec<WatchResponse> {
        let mut messages = Vec::new();
        let contexts = self.cluster.node(&self.node);
        let exists = |uid: &str| {
            let found = contexts.binary_search_by(|context| context.pod.uid.as_str().cmp(uid));
            found.is_ok()
        };
        if !self.synced {
            self.reports.begin(exists);
        }
        let deleted: Vec<_> = self
            .pods
            .extract_if(.., |uid, _| !exists(uid.as_str()))
            .collect();
        for (uid, state) in deleted {
            log_end(&state);
            self.reports.deleted(&state.context.pod);
            messages.push(message::pod_removed(uid.as_str()));
            self.release(&state.outcome);
        }
        for context in contexts {
            let known = self.pods.get_mut(&context.pod.uid);
            if known
                .as_ref()
                .is_some_and(|known| known.context.is_same(&context))
            {
                continue;
            }
            let mut outcome = decide(&context, &self.settings);
            let mut reported = 0;
            match known {
                Some(known) if known.outcome == outcome => {
                    if known.context.pod == context.pod {
                        known.context = context;
                        continue;
                    }
                    reported = known.reported;
                }
                _ => {
                    let _span = decision_log::span(&context.pod, &outcome).entered();
                    decision_log::log(&context.pod, &outcome);
                    if let Some(decisions) = &self.decisions {
                        decisions.with_label_values(&[outcome.as_label()]).inc();
                    }
                    self.reports.decided(&context.pod, &outcome);
                }
            }
            let identity = match &mut outcome {
                Outcome::Granted(identity) => Some(self.acquire(identity)),
                _ => None,
            };
            messages.push(message::pod_applied(&context.pod, &outcome, identity));
            let uid = context.pod.uid.clone();
            let state = PodState {
                context,
                outcome,
                reported,
            };
            if let Some(previous) = self.pods.insert(uid, state) {
                self.release(&previous.outcome);
            }
        }
        self.send_identities(&mut messages);
        self.report_identities();
        if !self.synced {
            self.synced = true;
            messages.push(message::synced());
        }
        messages
    }

    /// Counts one more pod of an identity, and returns its number on this stream. Replaces the
    /// identity by the equal one in the store, which all sessions share.
    fn acquire(&mut self, identity: &mut Arc<Identity>) -> u64 {
        if let Some(leased) = self.identities.get_mut(identity) {
            leased.pods += 1;
            *identity = Arc::clone(leased.lease.identity());
            return leased.number;
        }
        let lease = self.store.lease(identity, Arc::clone(&self.signal));
        *identity = Arc::clone(lease.identity());
        let number = self.next_identity;
        self.next_identity += 1;
        let leased = LeasedIdentity {
            number,
            pods: 1,
            lease,
            sent: 0,
        };
        self.identities.insert(Arc::clone(identity), leased);
        number
    }

    /// Counts one pod less of an identity. The agent drops an identity with its last pod, when it
    /// handles that message, and so does this side: if the identity is granted again, it gets
    /// another number, and its credentials are sent again.
    fn release(&mut self, outcome: &Outcome) {
        let Outcome::Granted(identity) = outcome else {
            return;
        };
        if let Some(leased) = self.identities.get_mut(identity) {
            leased.pods -= 1;
            if leased.pods == 0 {
                self.identities.remove(identity);
            }
        }
    }

    fn send_identities(&mut self, messages: &mut Vec<WatchResponse>) {
        for leased in self.identities.values_mut() {
            let snapshot = leased.lease.snapshot();
            if snapshot.version == leased.sent {
                continue;
            }
            leased.sent = snapshot.version;
            if let Some(credentials) = snapshot.credentials {
                messages.push(message::issued(leased.number, &credentials));
            }
            if let Some(failure) = snapshot.failure {
                messages.push(message::failed(leased.number, &failure));
            }
        }
    }

    /// Reports the result of the identity of each pod.
    fn report_identities(&mut self) {
        if !self.reports.is_on() {
            return;
        }
        for state in self.pods.values_mut() {
            let Outcome::Granted(identity) = &state.outcome else {
                continue;
            };
            if let Some(leased) = self.identities.get(identity)
                && leased.sent != state.reported
            {
                state.reported = leased.sent;
                let snapshot = leased.lease.snapshot();
                self.reports
                    .identity(&state.context.pod, identity, &snapshot);
            }
        }
    }
}

fn log_end(state: &PodState) {
    if let Outcome::Granted(identity) = &state.outcome {
        tracing::info!(
            pod.namespace = %state.context.pod.namespace,
            pod.name = %state.context.pod.name,
            pod.iam.role = %identity.role,
            "the grant ended: the pod was deleted"
        );
    }
}
