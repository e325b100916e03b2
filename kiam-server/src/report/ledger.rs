//! What this replica has recorded of each node's pods, so that it is recorded once.
//!
//! Each node has a page, which sessions of the node share and which outlives them: a session that
//! begins again finds what was granted, and records only what has changed since. While no session
//! is there, the ledger itself watches the node's part of the cluster: grants of pods that go are
//! recorded as ended then, and their entries dropped, so that a page holds at most the pods there
//! are, and nothing remains of a node without any. Other changes show when the agent is back: until
//! then it keeps what it was granted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use super::record::{Action, Record};
use crate::clock::Clock;
use crate::cluster::object::Pod;
use crate::cluster::{Cluster, Signal, Subscription};
use crate::identity::Identity;
use crate::policy::Outcome;

/// Between two looks at the pages of nodes without a session.
const REST: Duration = Duration::from_secs(1);

const CHANGED: &str = "the pod's role or session has changed";
const GONE: &str = "the pod is gone";
const GONE_MEANWHILE: &str = "the pod is gone; its node's agent was not attached here then";

/// What this replica has recorded.
#[derive(Debug)]
pub(super) struct Ledger {
    cluster: Arc<Cluster>,
    clock: Arc<dyn Clock>,
    queue: Queue<Record>,
    pages: Mutex<HashMap<Arc<str>, Page>>,
    /// Woken when a page without a session may hold pods that are gone.
    detached: Signal,
}

#[derive(Debug, Default)]
struct Page {
    sessions: usize,
    /// Only while there is no session.
    watch: Option<Subscription>,
    pods: HashMap<Arc<str>, Known>,
}

/// What was recorded of a pod last.
#[derive(Debug)]
enum Known {
    Granted {
        pod: Arc<Pod>,
        identity: Arc<Identity>,
        access_key_id: Box<str>,
    },
    /// The policies refuse it.
    Forbidden { reason: Box<str> },
    /// AWS refuses it.
    Refused {
        identity: Arc<Identity>,
        reason: Box<str>,
    },
}

impl Ledger {
    pub(super) fn new(cluster: Arc<Cluster>, clock: Arc<dyn Clock>, queue: Queue<Record>) -> Self {
        Self {
            cluster,
            clock,
            queue,
            pages: Mutex::default(),
            detached: Signal::default(),
        }
    }

    pub(super) fn attach(&self, node: &Arc<str>) {
        let mut pages = self.lock();
        let page = pages.entry(Arc::clone(node)).or_default();
        page.sessions += 1;
        page.watch = None;
    }

    pub(super) fn detach(&self, node: &Arc<str>) {
        let mut pages = self.lock();
        let Entry::Occupied(mut page) = pages.entry(Arc::clone(node)) else {
            return;
        };
        page.get_mut().sessions -= 1;
        if page.get().sessions > 0 {
            return;
        }
        if page.get().pods.is_empty() {
            page.remove();
            return;
        }
        page.get_mut().watch = Some(self.cluster.subscribe(node, Arc::clone(&self.detached)));
        // For what went between the session's last look and now.
        self.detached.notify_one();
    }

    /// Looks after the pages of nodes without a session.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.detached.notified() => self.drop_gone(),
                () = stop.cancelled() => return,
            }
            // Many nodes' pods may go at once, one by one.
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn drop_gone(&self) {
        let mut pages = self.lock();
        pages.retain(|node, page| {
            if page.sessions > 0 {
                return true;
            }
            page.pods.retain(|uid, known| {
                let pod = self.cluster.pod(uid);
                let there = pod.is_some_and(|pod| pod.node.as_ref() == Some(node));
                if !there {
                    self.revoke(node, known, GONE_MEANWHILE);
                }
                there
            });
            !page.pods.is_empty()
        });
    }

    pub(super) fn begin(&self, node: &str, there: impl Fn(&str) -> bool) {
        if let Some(page) = self.lock().get_mut(node) {
            for (_, known) in page.pods.extract_if(|uid, _| !there(uid)) {
                self.revoke(node, &known, GONE_MEANWHILE);
            }
        }
    }

    pub(super) fn gone(&self, node: &str, uid: &str) {
        if let Some(page) = self.lock().get_mut(node)
            && let Some(known) = page.pods.remove(uid)
        {
            self.revoke(node, &known, GONE);
        }
    }

    pub(super) fn decided(&self, node: &str, pod: &Arc<Pod>, outcome: &Outcome) {
        let mut pages = self.lock();
        let Some(page) = pages.get_mut(node) else {
            return;
        };
        match outcome {
            Outcome::NoRole => {
                if let Some(known) = page.pods.remove(&pod.uid) {
                    self.revoke(node, &known, "nobody asks for a role any more");
                }
            }
            Outcome::Undecided { awaiting } => {
                if let Some(known) = page.pods.remove(&pod.uid) {
                    self.revoke(node, &known, &format!("{awaiting} is not known"));
                }
            }
            // Not recorded before there are credentials.
            Outcome::Granted(identity) => {
                match page.pods.get_mut(&pod.uid) {
                    // The pod as it is now: the old one need not be kept.
                    Some(Known::Granted {
                        pod: known,
                        identity: of,
                        ..
                    }) if of == identity => {
                        *known = Arc::clone(pod);
                        return;
                    }
                    Some(Known::Refused { identity: of, .. }) if of == identity => return,
                    _ => {}
                }
                if let Some(known) = page.pods.remove(&pod.uid) {
                    self.revoke(node, &known, CHANGED);
                }
            }
            Outcome::Forbidden { role, reason } => {
                if let Some(Known::Forbidden { reason: known }) = page.pods.get(&pod.uid)
                    && **known == **reason
                {
                    return;
                }
                let known = Known::Forbidden {
                    reason: reason.as_str().into(),
                };
                if let Some(before) = page.pods.insert(Arc::clone(&pod.uid), known) {
                    self.revoke(node, &before, reason);
                }
                self.queue.push(Record {
                    reason: Some(reason.clone()),
                    ..Record::new(self.clock.now(), Action::Refusal, node, pod, role)
                });
            }
        }
    }

    /// There are credentials for a pod that was granted their identity.
    pub(super) fn granted(
        &self,
        node: &str,
        pod: &Arc<Pod>,
        identity: &Arc<Identity>,
        access_key_id: &str,
    ) {
        let mut pages = self.lock();
        let Some(page) = pages.get_mut(node) else {
            return;
        };
        if let Some(Known::Granted { identity: of, .. }) = page.pods.get(&pod.uid)
            && of == identity
        {
            return;
        }
        let known = Known::Granted {
            pod: Arc::clone(pod),
            identity: Arc::clone(identity),
            access_key_id: access_key_id.into(),
        };
        if let Some(before) = page.pods.insert(Arc::clone(&pod.uid), known) {
            self.revoke(node, &before, CHANGED);
        }
        self.queue.push(Record {
            access_key_id: Some(access_key_id.to_owned()),
            ..Record::of(self.clock.now(), Action::Grant, node, pod, identity)
        });
    }

    /// AWS refuses what a pod was granted, and there are no credentials of before. A grant that
    /// was recorded is not ended by that: nobody took it back.
    pub(super) fn refused(
        &self,
        node: &str,
        pod: &Arc<Pod>,
        identity: &Arc<Identity>,
        reason: String,
    ) {
        let mut pages = self.lock();
        let Some(page) = pages.get_mut(node) else {
            return;
        };
        match page.pods.get(&pod.uid) {
            Some(Known::Granted { .. }) => return,
            Some(Known::Refused {
                identity: of,
                reason: known,
            }) if of == identity && **known == *reason => return,
            _ => {}
        }
        let known = Known::Refused {
            identity: Arc::clone(identity),
            reason: reason.as_str().into(),
        };
        page.pods.insert(Arc::clone(&pod.uid), known);
        self.queue.push(Record {
            reason: Some(reason),
            ..Record::of(self.clock.now(), Action::Refusal, node, pod, identity)
        });
    }

    /// Records the end of a grant; the end of a refusal is none.
    fn revoke(&self, node: &str, known: &Known, reason: &str) {
        if let Known::Granted {
            pod,
            identity,
            access_key_id,
        } = known
        {
            self.queue.push(Record {
                access_key_id: Some(access_key_id.to_string()),
                reason: Some(reason.to_owned()),
                ..Record::of(self.clock.now(), Action::Revocation, node, pod, identity)
            });
        }
    }

    /// How many nodes and pods there are entries of.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let pages = self.lock();
        let pods = pages.values().map(|page| page.pods.len()).sum();
        (pages.len(), pods)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
