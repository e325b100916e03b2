//! The open streams, their number per node, and their lifetime.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiam_common::metrics::Registry;
use kiam_common::outcome::OUTCOME_LABELS;
use prometheus::{IntCounterVec, IntGauge, Opts};
use tokio::sync::watch;
use tokio::time::Instant;

use super::NodeName;

/// Concurrent streams of one node. An agent has one stream, and two while it is replaced; as many
/// again may belong to dead connections that are not detected yet.
const MAX_PER_NODE: usize = 4;
/// The longest version of an agent, in characters.
const MAX_VERSION: usize = 64;

/// The metric label of a valid proof.
pub(super) const PROVED: &str = "proved";

/// Metrics of streams.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    streams: IntGauge,
    pub(super) refused: IntCounterVec,
    pub(super) proofs: IntCounterVec,
    pub(super) decisions: IntCounterVec,
}

impl StreamMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let streams = IntGauge::new("kiam_node_streams", "Open node streams.")?;
        let refused = IntCounterVec::new(
            Opts::new(
                "kiam_node_streams_refused_total",
                "Refused node streams, by reason.",
            ),
            &["reason"],
        )?;
        let proofs = IntCounterVec::new(
            Opts::new(
                "kiam_node_proofs_total",
                "Checked proofs of nodes, by result.",
            ),
            &["result"],
        )?;
        let decisions = IntCounterVec::new(
            Opts::new(
                "kiam_policy_decisions_total",
                "New and changed decisions about pods that were sent to agents, by outcome.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(proofs.clone()))?;
        registry.register(Box::new(decisions.clone()))?;
        proofs.with_label_values(&[PROVED]);
        for outcome in OUTCOME_LABELS {
            decisions.with_label_values(&[outcome]);
        }
        Ok(Self {
            streams,
            refused,
            proofs,
            decisions,
        })
    }
}

/// The lifetime of streams. It is limited so that agents reconnect and spread over new replicas.
#[derive(Debug, Clone, Copy)]
pub struct StreamAge {
    pub max: Duration,
    /// Returns numbers in 0..1.
    pub random: fn() -> f64,
}

impl StreamAge {
    /// Returns the lifetime of one stream: up to a fifth shorter than the maximum, so that streams
    /// that started together do not end together.
    pub(super) fn draw(&self) -> Duration {
        self.max
            .mul_f64(1.0 - 0.2 * (self.random)().clamp(0.0, 1.0))
    }
}

/// The open streams.
#[derive(Debug, Clone)]
pub struct Streams {
    gauge: IntGauge,
    by_node: ByNode,
    changed: watch::Sender<()>,
}

type ByNode = Arc<Mutex<HashMap<NodeName, Vec<Arc<ConnectedAgent>>>>>;

/// A connected agent.
#[derive(Debug)]
pub struct ConnectedAgent {
    pub node: NodeName,
    /// The version that the agent reports, truncated.
    pub agent_version: String,
    /// True if the agent reports that it guards its node.
    pub guarded: bool,
    /// The start of the stream.
    pub since: Instant,
}

/// The slot of an open stream, which is freed on drop.
#[derive(Debug)]
pub(crate) struct StreamSlot {
    gauge: IntGauge,
    by_node: ByNode,
    attached: Arc<ConnectedAgent>,
    changed: watch::Sender<()>,
}

impl Streams {
    pub(crate) fn new(metrics: &StreamMetrics) -> Self {
        Self {
            gauge: metrics.streams.clone(),
            by_node: Arc::default(),
            changed: watch::Sender::default(),
        }
    }

    /// Opens a stream of a node, if there is a free slot.
    pub(crate) fn open(
        &self,
        node: &NodeName,
        agent_version: &str,
        guarded: bool,
    ) -> Option<StreamSlot> {
        let mut by_node = lock(&self.by_node);
        let streams = by_node.entry(node.clone()).or_default();
        if streams.len() >= MAX_PER_NODE {
            return None;
        }
        let attached = Arc::new(ConnectedAgent {
            node: node.clone(),
            agent_version: agent_version.chars().take(MAX_VERSION).collect(),
            guarded,
            since: Instant::now(),
        });
        streams.push(Arc::clone(&attached));
        self.gauge.inc();
        drop(by_node);
        self.changed.send_replace(());
        Some(StreamSlot {
            gauge: self.gauge.clone(),
            by_node: Arc::clone(&self.by_node),
            attached,
            changed: self.changed.clone(),
        })
    }

    /// Returns a receiver that is notified when a stream opens or closes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the newest stream of each node: there are two while an agent is replaced.
    pub fn newest(&self) -> Vec<Arc<ConnectedAgent>> {
        let by_node = lock(&self.by_node);
        by_node
            .values()
            .filter_map(|streams| streams.last().map(Arc::clone))
            .collect()
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.gauge.dec();
        let mut by_node = lock(&self.by_node);
        if let Some(streams) = by_node.get_mut(&self.attached.node) {
            streams.retain(|other| !Arc::ptr_eq(other, &self.attached));
            if streams.is_empty() {
                by_node.remove(&self.attached.node);
            }
        }
        drop(by_node);
        self.changed.send_replace(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streams_of_a_node_are_limited_and_freed() {
        let streams = Streams::new(&StreamMetrics::new(&Registry::new()).unwrap());
        let (one, two): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut slots: Vec<_> = (0..MAX_PER_NODE)
            .map(|_| streams.open(&one, "1", true).unwrap())
            .collect();
        assert!(streams.open(&one, "1", true).is_none());
        let mut changes = streams.changes();
        let other = streams.open(&two, &"x".repeat(1000), false);
        assert!(other.is_some());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let mut newest = streams.newest();
        newest.sort_by(|a, b| a.node.as_str().cmp(b.node.as_str()));
        let versions = newest.iter().map(|stream| stream.agent_version.len());
        assert_eq!(versions.collect::<Vec<_>>(), [1, MAX_VERSION]);
        assert_eq!((newest[0].guarded, newest[1].guarded), (true, false));
        slots.pop();
        assert!(changes.has_changed().unwrap());
        assert!(streams.open(&one, "1", true).is_some());
        drop((slots, other));
        assert_eq!(streams.gauge.get(), 0);
        assert!(lock(&streams.by_node).is_empty());
    }

    #[test]
    fn lifetimes_are_spread_over_a_fifth_of_the_maximum() {
        let hour = Duration::from_secs(3600);
        for (random, minutes) in [(0.0, 60), (0.5, 54), (1.0, 48)] {
            // Function pointers cannot capture the number.
            let random: fn() -> f64 = match random {
                0.0 => || 0.0,
                0.5 => || 0.5,
                _ => || 1.0,
            };
            let age = StreamAge { max: hour, random };
            assert_eq!(age.draw().as_secs() / 60, minutes);
        }
    }
}
