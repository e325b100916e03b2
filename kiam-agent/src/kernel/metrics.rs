//! Metrics of the kernel programs, read from their maps at each scrape.

use std::sync::Arc;

use kiam_common::metrics::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::{KernelError, Programs};

const VERDICTS: &str = "kiam_kernel_verdicts_total";
const VERDICTS_HELP: &str = "Verdicts of the kernel programs, by hook and verdict.";
const CLOSED: &str = "kiam_old_connections_closed_total";
const CLOSED_HELP: &str = "Closed connections of pods to the metadata service that were older than the kernel programs (kiam-agent attach).";

/// `kiam_kernel_verdicts_total` and `kiam_old_connections_closed_total`.
#[derive(Debug)]
pub(crate) struct KernelMetrics {
    programs: Arc<Programs>,
    /// Describe the metrics; the values come from the kernel.
    shapes: (IntCounterVec, IntCounter),
}

impl KernelMetrics {
    /// Creates the metrics of these programs.
    pub(crate) fn new(programs: Arc<Programs>) -> prometheus::Result<Self> {
        let shapes = shapes()?;
        Ok(Self { programs, shapes })
    }

    /// Registers what describes the metrics.
    pub(crate) fn describe(registry: &Registry) -> prometheus::Result<()> {
        let (verdicts, closed) = shapes()?;
        registry.register(Box::new(verdicts))?;
        registry.register(Box::new(closed))
    }

    fn read(&self) -> Result<Vec<MetricFamily>, KernelError> {
        let counts = self.programs.counts()?;
        let old = self.programs.closed()?;
        let Ok((verdicts, closed)) = shapes() else {
            return Ok(Vec::new());
        };
        for (hook, verdict, count) in counts {
            let labels = [hook.as_label(), verdict.as_label()];
            verdicts.with_label_values(&labels).inc_by(count);
        }
        closed.inc_by(old);
        Ok([verdicts.collect(), closed.collect()].concat())
    }
}

fn shapes() -> prometheus::Result<(IntCounterVec, IntCounter)> {
    let verdicts = IntCounterVec::new(Opts::new(VERDICTS, VERDICTS_HELP), &["hook", "verdict"])?;
    Ok((verdicts, IntCounter::new(CLOSED, CLOSED_HELP)?))
}

impl Collector for KernelMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.shapes.0.desc(), self.shapes.1.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the counts of the kernel programs");
            Vec::new()
        })
    }
}
