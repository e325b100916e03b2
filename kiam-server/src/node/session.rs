//! One stream: the node's part of the cluster, decided, and compared with what was sent.
//!
//! A session keeps no queue of changes. Whenever it is woken it decides about the node's pods
//! anew and sends the difference to what it sent before; wake-ups while it sends are one wake-up
//! afterwards. So a slow agent costs the server one node's state, and what an agent holds is at
//! every moment what the policies said of a state that was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiam_common::api::node::v1::WatchResponse;
use prometheus::IntCounterVec;
use tokio::sync::mpsc;
use tonic::Status;

use super::message;
use super::streams::StreamMetrics;
use crate::cluster::{Cluster, Member, Signal};
use crate::credentials::{Lease, Store};
use crate::decision;
use crate::identity::Identity;
use crate::policy::{Outcome, Settings, decide};
use crate::report::{NodeReports, Reports};

/// What waits to be sent. In a box: a channel keeps room for 32 at once, however few there are.
pub type Message = Result<Box<WatchResponse>, Status>;
/// Where a session's messages go.
pub type Sender = mpsc::Sender<Message>;

/// What one agent was told.
#[derive(Debug)]
pub struct Session {
    node: Arc<str>,
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    settings: Arc<Settings>,
    signal: Signal,
    reports: NodeReports,
    decisions: Option<IntCounterVec>,
    pods: BTreeMap<Arc<str>, Told>,
    identities: HashMap<Arc<Identity>, Leased>,
    next_identity: u64,
    synced: bool,
}

#[derive(Debug)]
struct Told {
    /// By what it was decided.
    member: Member,
    outcome: Outcome,
    /// The version of its identity that was reported of it.
    reported: u64,
}

#[derive(Debug)]
struct Leased {
    number: u64,
    /// How many pods the agent knows that are granted it.
    pods: usize,
    lease: Lease,
    told: u64,
}

/// The agent is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Session {
    /// For the agent of `node`, which is told nothing yet. `signal` is woken when there is something
    /// to tell.
    #[must_use]
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

    /// Has what it decides, and what becomes of it, reported.
    pub(super) fn reporting_to(mut self, reports: &Reports) -> Self {
        self.reports = reports.of_node(Arc::clone(&self.node));
        self
    }

    /// Has what it decides counted.
    pub(super) fn counted_by(mut self, metrics: &StreamMetrics) -> Self {
        self.decisions = Some(metrics.decisions.clone());
        self
    }

    /// Tells what has changed since the last time; the first time, everything, and that this was
    /// everything.
    ///
    /// # Errors
    /// When the agent is gone.
    pub async fn tell(&mut self, to: &Sender) -> Result<(), Closed> {
        for message in self.changes() {
            let message = Ok(Box::new(message));
            to.send(message).await.map_err(|_closed| Closed)?;
        }
        Ok(())
    }

    /// Pods that are gone come first, then those that have changed, then credentials: they are
    /// never of an identity that no pod the agent knows of was granted.
    fn changes(&mut self) -> Vec<WatchResponse> {
        let mut messages = Vec::new();
        let members = self.cluster.node(&self.node);
        let there = |uid: &str| {
            let found = members.binary_search_by(|member| (*member.pod.uid).cmp(uid));
            found.is_ok()
        };
        if !self.synced {
            self.reports.begin(there);
        }
        let gone: Vec<_> = self.pods.extract_if(.., |uid, _| !there(uid)).collect();
        for (uid, told) in gone {
            log_end(&told);
            self.reports.gone(&told.member.pod);
            messages.push(message::pod_removed(&uid));
            self.let_go(&told.outcome);
        }
        for member in members {
            let told = self.pods.get_mut(&member.pod.uid);
            if told
                .as_ref()
                .is_some_and(|told| told.member.is_same(&member))
            {
                continue;
            }
            let mut outcome = decide(&member, &self.settings);
            let mut reported = 0;
            match told {
                Some(told) if told.outcome == outcome => {
                    if told.member.pod == member.pod {
                        told.member = member;
                        continue;
                    }
                    reported = told.reported;
                }
                _ => {
                    let _span = decision::span(&member.pod, &outcome).entered();
                    decision::log(&member.pod, &outcome);
                    if let Some(decisions) = &self.decisions {
                        decisions.with_label_values(&[outcome.as_label()]).inc();
                    }
                    self.reports.decided(&member.pod, &outcome);
                }
            }
            let identity = match &mut outcome {
                Outcome::Granted(identity) => Some(self.hold(identity)),
                _ => None,
            };
            messages.push(message::pod_applied(&member.pod, &outcome, identity));
            let uid = Arc::clone(&member.pod.uid);
            let told = Told {
                member,
                outcome,
                reported,
            };
            if let Some(before) = self.pods.insert(uid, told) {
                self.let_go(&before.outcome);
            }
        }
        self.news_of_identities(&mut messages);
        self.report_identities();
        if !self.synced {
            self.synced = true;
            messages.push(message::synced());
        }
        messages
    }

    /// The number of an identity on this stream, for one pod more; of the equal identities that
    /// each decision makes, all sessions keep the one that the store has.
    fn hold(&mut self, identity: &mut Arc<Identity>) -> u64 {
        if let Some(leased) = self.identities.get_mut(identity) {
            leased.pods += 1;
            *identity = Arc::clone(leased.lease.identity());
            return leased.number;
        }
        let lease = self.store.lease(identity, Arc::clone(&self.signal));
        *identity = Arc::clone(lease.identity());
        let number = self.next_identity;
        self.next_identity += 1;
        let leased = Leased {
            number,
            pods: 1,
            lease,
            told: 0,
        };
        self.identities.insert(Arc::clone(identity), leased);
        number
    }

    /// One pod less is granted what it was. The agent forgets an identity with its last pod, at
    /// that very message, and so does this side: should another message grant it again, it has
    /// another number, and its credentials are sent again.
    fn let_go(&mut self, outcome: &Outcome) {
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

    fn news_of_identities(&mut self, messages: &mut Vec<WatchResponse>) {
        for leased in self.identities.values_mut() {
            let snapshot = leased.lease.snapshot();
            if snapshot.version == leased.told {
                continue;
            }
            leased.told = snapshot.version;
            if let Some(credentials) = snapshot.credentials {
                messages.push(message::issued(leased.number, &credentials));
            }
            if let Some(failure) = snapshot.failure {
                messages.push(message::failed(leased.number, &failure));
            }
        }
    }

    /// Reports of each pod what has become of the identity that it was granted.
    fn report_identities(&mut self) {
        if !self.reports.is_on() {
            return;
        }
        for told in self.pods.values_mut() {
            let Outcome::Granted(identity) = &told.outcome else {
                continue;
            };
            if let Some(leased) = self.identities.get(identity)
                && leased.told != told.reported
            {
                told.reported = leased.told;
                let snapshot = leased.lease.snapshot();
                self.reports.identity(&told.member.pod, identity, &snapshot);
            }
        }
    }
}

fn log_end(told: &Told) {
    if let Outcome::Granted(identity) = &told.outcome {
        tracing::info!(
            pod.namespace = %told.member.pod.namespace,
            pod.name = %told.member.pod.name,
            pod.iam.role = %identity.role,
            "the pod is gone, and with it its grant"
        );
    }
}
