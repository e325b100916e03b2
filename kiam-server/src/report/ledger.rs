//! The records of this replica for the pods of each node, so that each grant is recorded once.
//!
//! Each node has a page, which the sessions of the node share and which outlives them: a new
//! session finds the existing grants, and records only changes. While a node has no session, the
//! ledger itself watches the pods of the node: when one is deleted, it records the end of the grant
//! and drops the entry. A page therefore never has more entries than the node has pods. Other
//! changes are recorded when the agent reconnects; until then it keeps its grants.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiam_common::pod_uid::PodUid;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use super::record::{Action, Record};
use crate::clock::Clock;
use crate::cluster::object::Pod;
use crate::cluster::{Cluster, Signal, Subscription};
use crate::identity::Identity;
use crate::policy::Outcome;

/// The interval between checks of the pages of nodes without a session.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

const CHANGED: &str = "the role or session of the pod changed";
const DELETED: &str = "the pod was deleted";
const DELETED_MEANWHILE: &str =
    "the pod was deleted while the agent of its node was not connected to this server";

/// The records of this replica.
#[derive(Debug)]
pub(super) struct Ledger {
    cluster: Arc<Cluster>,
    clock: Arc<dyn Clock>,
    queue: Queue<Record>,
    pages: Mutex<HashMap<Arc<str>, Page>>,
    /// Woken when a page without a session may contain deleted pods.
    detached: Signal,
}

#[derive(Debug, Default)]
struct Page {
    sessions: usize,
    /// Present while there is no session.
    watch: Option<Subscription>,
    pods: HashMap<PodUid, Known>,
}

/// The last record of a pod.
#[derive(Debug)]
enum Known {
    Granted {
        pod: Arc<Pod>,
        identity: Arc<Identity>,
        access_key_id: Box<str>,
    },
    /// The policies refuse the role.
    Forbidden { reason: Box<str> },
    /// AWS refuses the role.
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
        // A pod may have been deleted since the last update of the session.
        self.detached.notify_one();
    }

    /// Checks the pages of nodes without a session, until `stop` is cancelled.
    pub(super) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.detached.notified() => self.drop_deleted(),
                () = stop.cancelled() => return,
            }
            // Coalesces the deletions of many pods.
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn drop_deleted(&self) {
        let mut pages = self.lock();
        pages.retain(|node, page| {
            if page.sessions > 0 {
                return true;
            }
            page.pods.retain(|uid, known| {
                let pod = self.cluster.pod(uid.as_str());
                let exists = pod.is_some_and(|pod| pod.node.as_ref() == Some(node));
                if !exists {
                    self.revoke(node, known, DELETED_MEANWHILE);
                }
                exists
            });
            !page.pods.is_empty()
        });
    }

    pub(super) fn begin(&self, node: &str, exists: impl Fn(&str) -> bool) {
        if let Some(page) = self.lock().get_mut(node) {
            for (_, known) in page.pods.extract_if(|uid, _| !exists(uid.as_str())) {
                self.revoke(node, &known, DELETED_MEANWHILE);
            }
        }
    }

    pub(super) fn deleted(&self, node: &str, uid: &str) {
        if let Some(page) = self.lock().get_mut(node)
            && let Some(known) = page.pods.remove(uid)
        {
            self.revoke(node, &known, DELETED);
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
                    self.revoke(node, &known, "the annotation of the role was removed");
                }
            }
            Outcome::Undecided { awaiting } => {
                if let Some(known) = page.pods.remove(&pod.uid) {
                    self.revoke(node, &known, &format!("{awaiting} is not known"));
                }
            }
            // Recorded once there are credentials.
            Outcome::Granted(identity) => {
                match page.pods.get_mut(&pod.uid) {
                    // The new state of the pod, so that the old one can be dropped.
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
                    && known == reason
                {
                    return;
                }
                let known = Known::Forbidden {
                    reason: reason.clone(),
                };
                if let Some(previous) = page.pods.insert(pod.uid.clone(), known) {
                    self.revoke(node, &previous, reason);
                }
                self.queue.push(Record {
                    reason: Some(reason.to_string()),
                    ..Record::new(self.clock.now(), Action::Refusal, node, pod, role)
                });
            }
        }
    }

    /// Records a grant, once there are credentials.
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
        if let Some(previous) = page.pods.insert(pod.uid.clone(), known) {
            self.revoke(node, &previous, CHANGED);
        }
        self.queue.push(Record {
            access_key_id: Some(access_key_id.to_owned()),
            ..Record::of(self.clock.now(), Action::Grant, node, pod, identity)
        });
    }

    /// Records that AWS refuses a granted role. This does not end a recorded grant.
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
        page.pods.insert(pod.uid.clone(), known);
        self.queue.push(Record {
            reason: Some(reason),
            ..Record::of(self.clock.now(), Action::Refusal, node, pod, identity)
        });
    }

    /// Records the end of a grant. The end of a refusal is not recorded.
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

    /// Returns the numbers of nodes and pods with entries.
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
