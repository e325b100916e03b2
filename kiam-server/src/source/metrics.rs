//! Metrics of the watches.

use std::sync::Arc;
use std::time::SystemTime;

use kiam_common::metrics::Registry;
use kube::api::ObjectMeta;
use kube::runtime::watcher;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::clock::Clock;
use crate::cluster::object::Kind;

/// HTTP status: the resource version of the watch is too old.
const GONE: u16 = 410;
/// The API truncates times to seconds: a lag below one second cannot be measured.
const LAG_BUCKETS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// Metrics of the watches.
#[derive(Debug, Clone)]
pub(crate) struct WatchMetrics {
    clock: Arc<dyn Clock>,
    last_event: GaugeVec,
    lag: HistogramVec,
    errors: IntCounterVec,
}

impl WatchMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub(crate) fn new(registry: &Registry, clock: Arc<dyn Clock>) -> prometheus::Result<Self> {
        let last_event = GaugeVec::new(
            Opts::new(
                "kiam_k8s_watch_last_event_timestamp_seconds",
                "Time of the last event of the watch, in seconds since 1970.",
            ),
            &["kind"],
        )?;
        let lag = HistogramVec::new(
            HistogramOpts::new(
                "kiam_k8s_watch_lag_seconds",
                "Time from the write of an object to its event in the watch. Up to one second too \
                 long, because the API truncates the time of the write.",
            )
            .buckets(LAG_BUCKETS.to_vec()),
            &["kind"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new(
                "kiam_k8s_watch_errors_total",
                "Failed lists and broken watches, by kind and reason.",
            ),
            &["kind", "reason"],
        )?;
        registry.register(Box::new(last_event.clone()))?;
        registry.register(Box::new(lag.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        for kind in Kind::ALL {
            lag.with_label_values(&[kind.as_str()]);
            for reason in ["list", "start", "expired", "refused", "broken", "malformed"] {
                errors.with_label_values(&[kind.as_str(), reason]);
            }
        }
        Ok(Self {
            clock,
            last_event,
            lag,
            errors,
        })
    }

    pub(super) fn event(&self, kind: Kind) {
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH);
        let gauge = self.last_event.with_label_values(&[kind.as_str()]);
        gauge.set(now.unwrap_or_default().as_secs_f64());
    }

    /// Observes the lag of an event that has just arrived.
    pub(super) fn lag(&self, kind: Kind, metadata: &ObjectMeta) {
        let Some(written) = written(metadata) else {
            return;
        };
        // Zero if the clock of the API is ahead.
        let lag = self.clock.now().duration_since(written).unwrap_or_default();
        let histogram = self.lag.with_label_values(&[kind.as_str()]);
        histogram.observe(lag.as_secs_f64());
    }

    /// Counts an error, and returns its reason.
    pub(super) fn error(&self, kind: Kind, error: &watcher::Error) -> &'static str {
        let reason = match error {
            watcher::Error::InitialListFailed(_) => "list",
            watcher::Error::WatchStartFailed(_) => "start",
            watcher::Error::WatchError(status) if status.code == GONE => "expired",
            watcher::Error::WatchError(_) => "refused",
            watcher::Error::WatchFailed(_) => "broken",
            watcher::Error::NoResourceVersion => "malformed",
        };
        let counter = self.errors.with_label_values(&[kind.as_str(), reason]);
        counter.inc();
        reason
    }
}

/// Returns the time of the last write of an object: of its managed fields, or of its creation.
fn written(metadata: &ObjectMeta) -> Option<SystemTime> {
    let writers = metadata.managed_fields.iter().flatten();
    let last = writers.filter_map(|writer| writer.time.as_ref()).max();
    let time = last.or(metadata.creation_timestamp.as_ref())?;
    Some(SystemTime::from(time.0))
}
