//! What the programs count, as metrics: read from the kernel when somebody asks.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};

use super::Programs;

const NAME: &str = "kiam_kernel_verdicts_total";
const HELP: &str = "What the kernel programs did, by hook and verdict.";

/// `kiam_kernel_verdicts_total`.
#[derive(Debug)]
pub struct KernelMetrics {
    programs: Arc<Programs>,
    /// Describes the metric; the values are the kernel's.
    shape: IntCounterVec,
}

impl KernelMetrics {
    /// Counts what these programs do.
    ///
    /// # Errors
    /// When the metric's name is no name.
    pub fn new(programs: Arc<Programs>) -> prometheus::Result<Self> {
        let shape = shape()?;
        Ok(Self { programs, shape })
    }

    fn read(&self) -> Option<Vec<MetricFamily>> {
        let counts = self.programs.counts().inspect_err(|error| {
            tracing::warn!(%error, "cannot read what the kernel programs count");
        });
        let metric = shape().ok()?;
        for (hook, verdict, count) in counts.ok()? {
            let labels = [hook.as_label(), verdict.as_label()];
            metric.with_label_values(&labels).inc_by(count);
        }
        Some(metric.collect())
    }
}

fn shape() -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(NAME, HELP), &["hook", "verdict"])
}

impl Collector for KernelMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_default()
    }
}
