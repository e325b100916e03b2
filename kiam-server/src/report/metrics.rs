//! What became of audit records and Events.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// What is counted about reports.
#[derive(Debug, Clone)]
pub struct ReportMetrics {
    audit: IntCounterVec,
    events: IntCounterVec,
}

impl ReportMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let audit = IntCounterVec::new(
            Opts::new(
                "kiam_audit_records_total",
                "Audit records: written, dropped for want of room, failed to be written.",
            ),
            &["outcome"],
        )?;
        let events = IntCounterVec::new(
            Opts::new(
                "kiam_events_total",
                "Kubernetes Events: published, suppressed as told within the hour, dropped for want \
                 of room, stale since the pod is gone, failed at the API.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(audit.clone()))?;
        registry.register(Box::new(events.clone()))?;
        let metrics = Self { audit, events };
        for outcome in ["written", "dropped", "failed"] {
            metrics.audit(outcome);
        }
        for outcome in ["published", "suppressed", "dropped", "stale", "failed"] {
            metrics.event(outcome);
        }
        Ok(metrics)
    }

    pub(super) fn audit(&self, outcome: &str) -> IntCounter {
        self.audit.with_label_values(&[outcome])
    }

    pub(super) fn event(&self, outcome: &str) -> IntCounter {
        self.events.with_label_values(&[outcome])
    }
}
