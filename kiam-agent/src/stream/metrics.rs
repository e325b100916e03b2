//! Metrics of the node stream.

use std::time::SystemTime;

use kiam_common::metrics::Registry;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts};

/// The metrics of the node stream.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    /// 1 while the current stream is synced.
    pub(super) synced: IntGauge,
    pub(super) began: Gauge,
    pub(super) last_update: Gauge,
    pub(super) ends: IntCounterVec,
    pub(super) updates: IntCounterVec,
    pub(super) refused: IntCounterVec,
}

impl StreamMetrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            synced: IntGauge::new(
                "kiam_node_stream_synced",
                "1 while the stream of a server is synced, 0 while the agent works with the last known state.",
            )?,
            began: Gauge::new(
                "kiam_node_stream_began_timestamp_seconds",
                "Start of the current stream, in seconds since 1970; 0 if there is none.",
            )?,
            last_update: Gauge::new(
                "kiam_node_stream_last_update_timestamp_seconds",
                "Time of the last message of a server, in seconds since 1970.",
            )?,
            ends: counter(
                "kiam_node_stream_ends_total",
                "Streams that ended or could not be opened, by reason.",
                "reason",
            )?,
            updates: counter(
                "kiam_node_stream_updates_total",
                "Updates received, by kind.",
                "kind",
            )?,
            refused: counter(
                "kiam_node_stream_updates_refused_total",
                "Updates rejected, by reason.",
                "reason",
            )?,
        };
        let Self {
            synced,
            began,
            last_update,
            ends,
            updates,
            refused,
        } = metrics.clone();
        registry.register(Box::new(synced))?;
        registry.register(Box::new(began))?;
        registry.register(Box::new(last_update))?;
        registry.register(Box::new(ends))?;
        registry.register(Box::new(updates))?;
        registry.register(Box::new(refused))?;
        Ok(metrics)
    }

    pub(super) fn ended(&self, reason: &str) {
        self.synced.set(0);
        self.began.set(0.0);
        self.ends.with_label_values(&[reason]).inc();
    }
}

pub(super) fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
