//! What is counted about the watches.

use std::sync::Arc;
use std::time::SystemTime;

use kube::api::ObjectMeta;
use kube::runtime::watcher;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use crate::clock::Clock;
use crate::cluster::object::Kind;

/// As HTTP says it: the resource version that the watch went on from is too old.
const GONE: u16 = 410;
/// The API writes times in whole seconds, downwards: nothing below one can be told.
const LAG_BUCKETS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// What is counted about the watches.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    clock: Arc<dyn Clock>,
    last_event: GaugeVec,
    lag: HistogramVec,
    errors: IntCounterVec,
}

impl WatchMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry, clock: Arc<dyn Clock>) -> prometheus::Result<Self> {
        let last_event = GaugeVec::new(
            Opts::new(
                "kiam_k8s_watch_last_event_timestamp_seconds",
                "When the API last told of an object of the kind, in seconds since 1970.",
            ),
            &["kind"],
        )?;
        let lag = HistogramVec::new(
            HistogramOpts::new(
                "kiam_k8s_watch_lag_seconds",
                "How long after an object was written the watch told of it, by the time that the API \
                 noted in it, which is up to a second early.",
            )
            .buckets(LAG_BUCKETS.to_vec()),
            &["kind"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new(
                "kiam_k8s_watch_errors_total",
                "Lists and watches that failed or broke, by kind and reason.",
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

    /// An object was written, and the watch has just told of it.
    pub(super) fn lag(&self, kind: Kind, metadata: &ObjectMeta) {
        let Some(written) = written(metadata) else {
            return;
        };
        // Where the API's clock is ahead there is no telling.
        let lag = self.clock.now().duration_since(written).unwrap_or_default();
        let histogram = self.lag.with_label_values(&[kind.as_str()]);
        histogram.observe(lag.as_secs_f64());
    }

    /// Counts an error, and returns the reason that it counts as.
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

/// When an object was last written: what the API notes of each writer, else of its making.
fn written(metadata: &ObjectMeta) -> Option<SystemTime> {
    let writers = metadata.managed_fields.iter().flatten();
    let last = writers.filter_map(|writer| writer.time.as_ref()).max();
    let time = last.or(metadata.creation_timestamp.as_ref())?;
    Some(SystemTime::from(time.0))
}
