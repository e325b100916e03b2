//! The streams that are open: how many of a node there may be, and for how long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::watch;
use tokio::time::Instant;

use super::NodeName;
use crate::policy::Outcome;

/// Streams of one node at once. An agent has one; while it is replaced there are two, and as many
/// again may be of connections that nobody has found dead yet.
const MAX_PER_NODE: usize = 4;
/// Of what an agent says of its version, in characters.
const MAX_VERSION: usize = 64;

/// The result of a proof that holds.
pub(super) const PROVED: &str = "proved";

/// What is counted about streams.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    streams: IntGauge,
    pub(super) refused: IntCounterVec,
    pub(super) proofs: IntCounterVec,
    pub(super) decisions: IntCounterVec,
}

impl StreamMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let streams = IntGauge::new("kiam_node_streams", "Node streams that are open.")?;
        let refused = IntCounterVec::new(
            Opts::new(
                "kiam_node_streams_refused_total",
                "Node streams refused, by reason.",
            ),
            &["reason"],
        )?;
        let proofs = IntCounterVec::new(
            Opts::new(
                "kiam_node_proofs_total",
                "Agents' proofs of their node that were checked, by result.",
            ),
            &["result"],
        )?;
        let decisions = IntCounterVec::new(
            Opts::new(
                "kiam_policy_decisions_total",
                "Decisions about pods that an agent was told, when new or changed, by outcome.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(proofs.clone()))?;
        registry.register(Box::new(decisions.clone()))?;
        proofs.with_label_values(&[PROVED]);
        for outcome in Outcome::LABELS {
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

/// How long a stream may last: agents that come back spread over replicas that have come since.
#[derive(Debug, Clone, Copy)]
pub struct StreamAge {
    /// About this long.
    pub most: Duration,
    /// Gives numbers in 0..1.
    pub random: fn() -> f64,
}

impl StreamAge {
    /// The life of one stream: up to a fifth shorter, so that those that began together do not
    /// end together.
    pub(super) fn draw(&self) -> Duration {
        self.most
            .mul_f64(1.0 - 0.2 * (self.random)().clamp(0.0, 1.0))
    }
}

/// The streams that are open.
#[derive(Debug, Clone)]
pub struct Streams {
    gauge: IntGauge,
    by_node: ByNode,
    changed: watch::Sender<()>,
}

type ByNode = Arc<Mutex<HashMap<NodeName, Vec<Arc<Attached>>>>>;

/// An agent that has a stream open.
#[derive(Debug)]
pub struct Attached {
    /// Its node.
    pub node: NodeName,
    /// What it says of its version, cut to a readable length.
    pub agent_version: String,
    /// Whether it says that it guards its node.
    pub guarded: bool,
    /// Since when.
    pub since: Instant,
}

/// A stream's place among them; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    gauge: IntGauge,
    by_node: ByNode,
    attached: Arc<Attached>,
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

    /// A place for one more stream of a node, if there is one.
    pub(crate) fn open(
        &self,
        node: &NodeName,
        agent_version: &str,
        guarded: bool,
    ) -> Option<Place> {
        let mut by_node = lock(&self.by_node);
        let streams = by_node.entry(node.clone()).or_default();
        if streams.len() >= MAX_PER_NODE {
            return None;
        }
        let attached = Arc::new(Attached {
            node: node.clone(),
            agent_version: agent_version.chars().take(MAX_VERSION).collect(),
            guarded,
            since: Instant::now(),
        });
        streams.push(Arc::clone(&attached));
        self.gauge.inc();
        drop(by_node);
        self.changed.send_replace(());
        Some(Place {
            gauge: self.gauge.clone(),
            by_node: Arc::clone(&self.by_node),
            attached,
            changed: self.changed.clone(),
        })
    }

    /// Wakes whoever waits for a stream to open or to close. Changes in quick succession are one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Of each node that has a stream open, the newest: while an agent is replaced there are two.
    #[must_use]
    pub fn newest(&self) -> Vec<Arc<Attached>> {
        let by_node = lock(&self.by_node);
        by_node
            .values()
            .filter_map(|streams| streams.last().map(Arc::clone))
            .collect()
    }
}

impl Drop for Place {
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
    fn a_node_has_a_few_streams_and_gives_them_back() {
        let streams = Streams::new(&StreamMetrics::new(&Registry::new()).unwrap());
        let (one, two): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut places: Vec<_> = (0..MAX_PER_NODE)
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
        places.pop();
        assert!(changes.has_changed().unwrap());
        assert!(streams.open(&one, "1", true).is_some());
        drop((places, other));
        assert_eq!(streams.gauge.get(), 0);
        assert!(lock(&streams.by_node).is_empty());
    }

    #[test]
    fn lives_are_drawn_from_the_last_fifth() {
        let hour = Duration::from_secs(3600);
        for (random, minutes) in [(0.0, 60), (0.5, 54), (1.0, 48)] {
            // Function pointers hold nothing: one for each number.
            let random: fn() -> f64 = match random {
                0.0 => || 0.0,
                0.5 => || 0.5,
                _ => || 1.0,
            };
            let age = StreamAge { most: hour, random };
            assert_eq!(age.draw().as_secs() / 60, minutes);
        }
    }
}
