//! What a pod's owner is told about it: each thing once an hour, and never many at once.
//!
//! A role that breaks in a thousand pods is a thousand notices, and again with every try. Each
//! passes three gates: one of a pod, reason and text per hour; room in a queue; and a rate for all
//! of them together. What does not pass is counted, not kept. A notice that the queue refused was
//! not told, and may come again.

use std::collections::hash_map::RandomState;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::IntCounter;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReportMetrics;
use super::queue::Queue;
use crate::cluster::Cluster;
use crate::cluster::object::Pod;

/// What was told is not told again for as long; the API forgets Events after an hour, too
/// (kube-apiserver's `--event-ttl`).
const QUIET: Duration = Duration::from_secs(3600);
/// What is remembered as told. At the rate below, two hours' worth and more.
const MAX_REMEMBERED: usize = 16_384;
/// Of all notices.
const PER_SECOND: f64 = 2.0;
/// At once, after a quiet time.
const BURST: f64 = 5.0;
/// For one Event.
const TIMEOUT: Duration = Duration::from_secs(10);

/// kiam's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The policies refuse the pod its role.
    RoleForbidden,
    /// There are no credentials of it.
    CredentialError,
}

impl Reason {
    /// As Events have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "KiamRoleForbidden",
            Self::CredentialError => "KiamCredentialError",
        }
    }
}

/// Something to tell a pod's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Of what kind it is.
    pub reason: Reason,
    /// The text: one line, no secrets.
    pub note: String,
}

/// Where notices are told.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Tells one, once, without retries.
    async fn publish(&self, notice: &Notice) -> Result<(), PublishError>;
}

/// Why a notice was not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PublishError(pub String);

/// Takes notices, and lets few of them through.
#[derive(Debug)]
pub(super) struct Notices {
    queue: Queue<Notice>,
    suppressed: IntCounter,
    hasher: RandomState,
    told: Mutex<Told>,
}

/// Oldest first.
#[derive(Debug, Default)]
struct Told {
    order: VecDeque<(Instant, u64)>,
    keys: HashSet<u64>,
}

impl Told {
    fn forget(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front()
            && (now - *at >= QUIET || self.order.len() >= MAX_REMEMBERED)
        {
            self.keys.remove(key);
            self.order.pop_front();
        }
    }
}

impl Notices {
    pub(super) fn new(queue: Queue<Notice>, suppressed: IntCounter) -> Self {
        Self {
            queue,
            suppressed,
            hasher: RandomState::new(),
            told: Mutex::default(),
        }
    }

    pub(super) fn offer(&self, pod: &Arc<Pod>, reason: Reason, note: String) {
        let key = self.hasher.hash_one((&*pod.uid, reason, &*note));
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.forget(now);
        if told.keys.contains(&key) {
            self.suppressed.inc();
            return;
        }
        let pod = Arc::clone(pod);
        if self.queue.push(Notice { pod, reason, note }) {
            told.keys.insert(key);
            told.order.push_back((now, key));
        }
    }

    /// How much is remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.told.lock().unwrap().order.len()
    }
}

/// Publishes notices at their rate, until told to stop. Those about pods that are gone by then are
/// left out.
pub async fn publish(
    mut notices: Receiver<Notice>,
    publisher: impl Publisher,
    cluster: Arc<Cluster>,
    metrics: ReportMetrics,
    stop: CancellationToken,
) {
    let mut bucket = Bucket::new();
    let mut failing = false;
    let work = async {
        while let Some(notice) = notices.recv().await {
            let Notice { pod, reason, .. } = &notice;
            if cluster.pod(&pod.uid).is_none() {
                metrics.event("stale").inc();
                continue;
            }
            bucket.take().await;
            let outcome = tokio::time::timeout(TIMEOUT, publisher.publish(&notice))
                .await
                .unwrap_or_else(|_elapsed| {
                    let seconds = TIMEOUT.as_secs();
                    Err(PublishError(format!("no answer within {seconds} s")))
                });
            let (namespace, name, reason) = (&pod.namespace, &pod.name, reason.as_str());
            match outcome {
                Ok(()) => {
                    metrics.event("published").inc();
                    failing = false;
                }
                Err(error) => {
                    metrics.event("failed").inc();
                    // The first of many says it.
                    if failing {
                        tracing::debug!(
                            pod.namespace = %namespace, pod.name = %name, reason,
                            "the Event was not published: {error}"
                        );
                    } else {
                        tracing::warn!(
                            pod.namespace = %namespace, pod.name = %name, reason,
                            "the Event was not published: {error}; it is not tried again, and \
                             failures that follow are only counted (kiam_events_total)"
                        );
                    }
                    failing = true;
                }
            }
        }
        // Nobody is left who could report; that is no reason to end before the others.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self {
            tokens: BURST,
            at: Instant::now(),
        }
    }

    async fn take(&mut self) {
        self.refill();
        if self.tokens < 1.0 {
            tokio::time::sleep(Duration::from_secs_f64((1.0 - self.tokens) / PER_SECOND)).await;
            self.refill();
        }
        self.tokens -= 1.0;
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let gained = (now - self.at).as_secs_f64() * PER_SECOND;
        self.tokens = (self.tokens + gained).min(BURST);
        self.at = now;
    }
}
