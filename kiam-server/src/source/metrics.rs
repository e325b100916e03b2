//! What is counted about the watches.

use std::sync::Arc;
use std::time::SystemTime;

use kube::runtime::watcher;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

use crate::clock::Clock;
use crate::cluster::object::Kind;

/// As HTTP says it: the resource version that the watch went on from is too old.
const GONE: u16 = 410;

/// What is counted about the watches.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    clock: Arc<dyn Clock>,
    last_event: GaugeVec,
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
        let errors = IntCounterVec::new(
            Opts::new(
                "kiam_k8s_watch_errors_total",
                "Lists and watches that failed or broke, by kind and reason.",
            ),
            &["kind", "reason"],
        )?;
        registry.register(Box::new(last_event.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        for kind in Kind::ALL {
            for reason in ["list", "start", "expired", "refused", "broken", "malformed"] {
                errors.with_label_values(&[kind.as_str(), reason]);
            }
        }
        Ok(Self {
            clock,
            last_event,
            errors,
        })
    }

    pub(super) fn event(&self, kind: Kind) {
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH);
        let gauge = self.last_event.with_label_values(&[kind.as_str()]);
        gauge.set(now.unwrap_or_default().as_secs_f64());
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
