//! Registry of a program's metrics, which can describe them before they have a value.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;

/// Description of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Name, without the suffixes of histograms.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Names of the labels, in the order of their values.
    pub labels: Vec<String>,
    /// Help text.
    pub help: String,
}

/// Registry of metrics.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    registry: prometheus::Registry,
    descriptions: Option<Arc<Mutex<BTreeMap<String, Description>>>>,
}

impl Registry {
    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty registry that also keeps descriptions.
    #[must_use]
    pub fn describing() -> Self {
        Self {
            descriptions: Some(Arc::default()),
            ..Self::default()
        }
    }

    /// Registers a collector.
    ///
    /// # Errors
    /// When one of its metrics is already registered.
    pub fn register(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        if let Some(descriptions) = &self.descriptions {
            let described = describe(&*collector);
            let mut descriptions = descriptions.lock().unwrap_or_else(PoisonError::into_inner);
            descriptions.extend(described.map(|it| (it.name.clone(), it)));
        }
        self.registry.register(collector)
    }

    /// Collects the values of all metrics.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Returns the descriptions, by name; none of a registry that does not keep them.
    #[must_use]
    pub fn descriptions(&self) -> Vec<Description> {
        let Some(descriptions) = &self.descriptions else {
            return Vec::new();
        };
        let descriptions = descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        descriptions.values().cloned().collect()
    }
}

/// A vector without children collects an empty family, which has its type.
fn describe(collector: &dyn Collector) -> impl Iterator<Item = Description> {
    let families = collector.collect();
    let kinds: BTreeMap<_, _> = families
        .iter()
        .map(|family| (family.name().to_owned(), kind(family.get_field_type())))
        .collect();
    collector.desc().into_iter().map(move |desc| Description {
        name: desc.fq_name.clone(),
        kind: kinds.get(&desc.fq_name).copied().unwrap_or("untyped"),
        labels: desc.variable_labels.clone(),
        help: desc.help.clone(),
    })
}

const fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn metrics_are_described_before_they_have_a_value() {
        let registry = Registry::describing();
        let ends = Opts::new("kiam_ends_total", "Ends.");
        let ends = IntCounterVec::new(ends, &["reason", "hook"]).unwrap();
        let wait = HistogramOpts::new("kiam_wait_seconds", "Waits.");
        let wait = HistogramVec::new(wait, &["handler"]).unwrap();
        registry.register(Box::new(ends)).unwrap();
        registry.register(Box::new(wait)).unwrap();
        let size = Gauge::new("kiam_size", "Size.").unwrap();
        registry.register(Box::new(size)).unwrap();
        let described = registry.descriptions();
        let described: Vec<_> = described
            .iter()
            .map(|it| format!("{} {} {:?} {}", it.name, it.kind, it.labels, it.help))
            .collect();
        assert_eq!(
            described,
            [
                r#"kiam_ends_total counter ["reason", "hook"] Ends."#,
                "kiam_size gauge [] Size.",
                r#"kiam_wait_seconds histogram ["handler"] Waits."#,
            ]
        );
    }

    #[test]
    fn a_metric_is_registered_once() {
        let registry = Registry::new();
        let size = Gauge::new("kiam_size", "Size.").unwrap();
        registry.register(Box::new(size.clone())).unwrap();
        assert!(registry.register(Box::new(size)).is_err());
        assert!(registry.descriptions().is_empty());
    }
}
