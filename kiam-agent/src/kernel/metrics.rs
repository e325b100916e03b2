//! What the programs count, as metrics: read from the kernel when somebody asks.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::{KernelError, Programs};

const VERDICTS: &str = "kiam_kernel_verdicts_total";
const VERDICTS_HELP: &str = "What the kernel programs did, by hook and verdict.";
const CLOSED: &str = "kiam_old_connections_closed_total";
const CLOSED_HELP: &str = "Pods' connections to the metadata service from before the kernel programs that were closed (kiam-agent attach).";

/// `kiam_kernel_verdicts_total` and `kiam_old_connections_closed_total`.
#[derive(Debug)]
pub struct KernelMetrics {
    programs: Arc<Programs>,
    /// Describe the metrics; the values are the kernel's.
    shapes: (IntCounterVec, IntCounter),
}

impl KernelMetrics {
    /// Counts what these programs do.
    ///
    /// # Errors
    /// When a metric's name is no name.
    pub fn new(programs: Arc<Programs>) -> prometheus::Result<Self> {
        let shapes = shapes()?;
        Ok(Self { programs, shapes })
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
            tracing::warn!(%error, "cannot read what the kernel programs count");
            Vec::new()
        })
    }
}
