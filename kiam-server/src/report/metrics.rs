//! Metrics of audit records and Events.

use kiam_common::metrics::Registry;
use prometheus::{IntCounter, IntCounterVec, Opts};

/// Metrics of audit records and Events.
#[derive(Debug, Clone)]
pub struct ReportMetrics {
    audit: IntCounterVec,
    events: IntCounterVec,
}

impl ReportMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let audit = IntCounterVec::new(
            Opts::new(
                "kiam_audit_records_total",
                "Audit records, by outcome: written, dropped (the queue was full), failed (could \
                 not be written).",
            ),
            &["outcome"],
        )?;
        let events = IntCounterVec::new(
            Opts::new(
                "kiam_events_total",
                "Kubernetes Events, by outcome: published, suppressed (a repetition within an \
                 hour), dropped (the queue was full), stale (the pod was deleted), failed (the API \
                 returned an error).",
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
