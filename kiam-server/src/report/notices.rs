//! Rate-limited notices to the owners of pods.
//!
//! A broken role in a thousand pods causes a thousand notices with every attempt. A notice is
//! published only if the same pod, reason and text were not published within an hour, if the queue
//! has space, and within a rate limit for all notices. Other notices are counted and dropped. A
//! notice that did not fit into the queue may be repeated at once.

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

/// The time without a repetition of a notice. The API deletes Events after the same time
/// (`--event-ttl` of kube-apiserver).
const QUIET: Duration = Duration::from_secs(3600);
/// The number of recent notices that are kept: more than two hours at the rate below.
const MAX_RECENT: usize = 16_384;
/// The rate limit of all notices.
const PER_SECOND: f64 = 2.0;
/// The burst above the rate limit.
const BURST: f64 = 5.0;
/// The limit for publishing one Event.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The reason of a notice, as in kiam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The policies refuse the role of the pod.
    RoleForbidden,
    /// STS does not issue credentials for the role.
    CredentialError,
}

impl Reason {
    /// Returns the reason of the Event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "KiamRoleForbidden",
            Self::CredentialError => "KiamCredentialError",
        }
    }
}

/// A notice to the owner of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub pod: Arc<Pod>,
    pub reason: Reason,
    /// One line, without secrets.
    pub note: String,
}

/// The publisher of notices.
#[async_trait]
pub(crate) trait Publisher: Send + Sync + 'static {
    /// Publishes a notice once, without retries.
    async fn publish(&self, notice: &Notice) -> Result<(), PublishError>;
}

/// The error of a notice that was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PublishError(pub String);

/// The filter of notices.
#[derive(Debug)]
pub(super) struct Notices {
    queue: Queue<Notice>,
    suppressed: IntCounter,
    hasher: RandomState,
    recent: Mutex<Recent>,
}

/// The keys of recent notices.
#[derive(Debug, Default)]
struct Recent {
    /// Oldest first.
    order: VecDeque<(Instant, u64)>,
    keys: HashSet<u64>,
}

impl Recent {
    fn drop_old(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front()
            && (now - *at >= QUIET || self.order.len() >= MAX_RECENT)
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
            recent: Mutex::default(),
        }
    }

    pub(super) fn offer(&self, pod: &Arc<Pod>, reason: Reason, note: String) {
        let key = self.hasher.hash_one((&pod.uid, reason, &*note));
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.drop_old(now);
        if recent.keys.contains(&key) {
            self.suppressed.inc();
            return;
        }
        let pod = Arc::clone(pod);
        if self.queue.push(Notice { pod, reason, note }) {
            recent.keys.insert(key);
            recent.order.push_back((now, key));
        }
    }

    /// Returns the number of recent notices.
    #[cfg(test)]
    pub(super) fn recent(&self) -> usize {
        self.recent.lock().unwrap().order.len()
    }
}

/// Publishes notices within the rate limit, until `stop` is cancelled. Skips notices of pods that
/// were deleted meanwhile.
pub(crate) async fn publish(
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
            if cluster.pod(pod.uid.as_str()).is_none() {
                metrics.event("stale").inc();
                continue;
            }
            bucket.take().await;
            let outcome = tokio::time::timeout(TIMEOUT, publisher.publish(&notice))
                .await
                .unwrap_or_else(|_elapsed| {
                    let seconds = TIMEOUT.as_secs();
                    Err(PublishError(format!("no response within {seconds} s")))
                });
            let (namespace, name, reason) = (&pod.namespace, &pod.name, reason.as_str());
            match outcome {
                Ok(()) => {
                    metrics.event("published").inc();
                    failing = false;
                }
                Err(error) => {
                    metrics.event("failed").inc();
                    // Only the first of several failures is a warning.
                    if failing {
                        tracing::debug!(
                            pod.namespace = %namespace, pod.name = %name, reason,
                            "cannot publish an Event: {error}"
                        );
                    } else {
                        tracing::warn!(
                            pod.namespace = %namespace, pod.name = %name, reason,
                            "cannot publish an Event: {error}; it is not retried, and further \
                             failures are only counted (kiam_events_total)"
                        );
                    }
                    failing = true;
                }
            }
        }
        // All senders are gone: wait for the other tasks.
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
