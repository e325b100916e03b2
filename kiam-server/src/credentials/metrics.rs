//! Metrics of credentials and STS calls. Those with a counterpart in kiam have its names.

use kiam_common::metrics::Registry;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};

use super::IssueErrorKind;

/// Metrics of credentials and STS calls.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    pub(super) entries: IntGauge,
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) errors: IntCounter,
    pub(super) errors_by_kind: IntCounterVec,
    pub(super) timing: Histogram,
    pub(super) current: IntGauge,
}

impl StoreMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            entries: IntGauge::new(
                "kiam_sts_cacheSize",
                "Identities whose credentials are held for pods of connected nodes.",
            )?,
            hits: IntCounter::new(
                "kiam_sts_cache_hit_total",
                "Grants whose identity was held already.",
            )?,
            misses: IntCounter::new(
                "kiam_sts_cache_miss_total",
                "Grants whose identity had to be fetched from STS first.",
            )?,
            errors: IntCounter::new("kiam_sts_issuing_errors_total", "Failed STS calls.")?,
            errors_by_kind: IntCounterVec::new(
                Opts::new(
                    "kiam_sts_errors_total",
                    "Failed STS calls, by kind of failure.",
                ),
                &["kind"],
            )?,
            timing: Histogram::with_opts(
                HistogramOpts::new(
                    "kiam_sts_assumerole_timing_seconds",
                    "Duration of STS calls, including failed ones.",
                )
                .buckets(prometheus::exponential_buckets(0.001, 2.0, 14)?),
            )?,
            current: IntGauge::new("kiam_sts_assumerole_current", "STS calls in flight.")?,
        };
        registry.register(Box::new(metrics.entries.clone()))?;
        registry.register(Box::new(metrics.hits.clone()))?;
        registry.register(Box::new(metrics.misses.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.errors_by_kind.clone()))?;
        registry.register(Box::new(metrics.timing.clone()))?;
        registry.register(Box::new(metrics.current.clone()))?;
        for kind in IssueErrorKind::ALL {
            metrics.errors_by_kind.with_label_values(&[kind.as_label()]);
        }
        Ok(metrics)
    }
}
