//! Report of `cargo xtask load`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Args;

const TARGET_BYTES_PER_POD: f64 = 1.5 * 1024.0;
const TARGET_PUSHED_P99_MS: f64 = 50.0;
const TARGET_IDLE_CPU_PERCENT: f64 = 1.0;

/// Raw measurements.
pub(super) struct Figures<'a> {
    pub(super) args: &'a Args,
    pub(super) identities: u64,
    pub(super) sts_calls: u64,
    pub(super) startup: Duration,
    pub(super) settled: Duration,
    pub(super) empty_rss_bytes: u64,
    pub(super) pods_rss_bytes: u64,
    pub(super) full_rss_bytes: u64,
    pub(super) idle_cpu: f64,
    pub(super) churn_cpu: f64,
    /// Sorted.
    pub(super) pushed: &'a [Duration],
}

/// The figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Pods at the start.
    pub pods: u64,
    /// Nodes, each with a stream.
    pub nodes: u64,
    /// Namespaces.
    pub namespaces: u64,
    /// Pods created, and deleted, per second.
    pub rate: u32,
    /// Roles that were in use, in all.
    pub identities: u64,
    /// Calls of `AssumeRole`.
    pub sts_calls: u64,
    /// Time from the server's start to its being ready, in milliseconds.
    pub startup_ms: f64,
    /// Time from the start of the first stream to the last pod's credentials on its stream, in
    /// milliseconds.
    pub all_pushed_ms: f64,
    /// Resident memory with no pod and no stream, in bytes.
    pub empty_rss_bytes: u64,
    /// With the pods and no stream.
    pub pods_rss_bytes: u64,
    /// With the pods, the streams and the credentials.
    pub full_rss_bytes: u64,
    /// Memory of the pods and nothing else.
    pub bytes_per_pod_without_streams: f64,
    /// Memory of all, streams and credentials included.
    pub bytes_per_pod: f64,
    /// Memory of the streams and credentials, by stream.
    pub bytes_per_stream: f64,
    /// Share of a core while idle, in percent.
    pub cpu_idle_percent: f64,
    /// Share of a core while pods are created and deleted, in percent.
    pub cpu_churn_percent: f64,
    /// Time from a pod's binding to its credentials on its node's stream, in milliseconds.
    pub bound_to_pushed_p50_ms: f64,
    /// The same, of 99 in 100.
    pub bound_to_pushed_p99_ms: f64,
    /// The same, of all.
    pub bound_to_pushed_max_ms: f64,
    /// Pods that these three are of.
    pub bound: usize,
    /// Targets, each with its result.
    pub targets: Vec<Target>,
}

/// Target for a figure.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Name of the figure.
    pub figure: &'static str,
    /// It should be less.
    pub below: f64,
    /// True if it is met.
    pub met: bool,
}

impl Report {
    pub(super) fn new(figures: &Figures<'_>) -> Self {
        let per = |from: u64, to: u64, count: u64| to.saturating_sub(from) as f64 / count as f64;
        let quantile = |q: f64| {
            let index = (figures.pushed.len().saturating_sub(1) as f64 * q).ceil() as usize;
            figures
                .pushed
                .get(index)
                .copied()
                .map_or(f64::NAN, milliseconds)
        };
        let mut report = Self {
            pods: figures.args.pods,
            nodes: figures.args.nodes,
            namespaces: figures.args.namespaces,
            rate: figures.args.rate,
            identities: figures.identities,
            sts_calls: figures.sts_calls,
            startup_ms: milliseconds(figures.startup),
            all_pushed_ms: milliseconds(figures.settled),
            empty_rss_bytes: figures.empty_rss_bytes,
            pods_rss_bytes: figures.pods_rss_bytes,
            full_rss_bytes: figures.full_rss_bytes,
            bytes_per_pod_without_streams: per(
                figures.empty_rss_bytes,
                figures.pods_rss_bytes,
                figures.args.pods,
            ),
            bytes_per_pod: per(
                figures.empty_rss_bytes,
                figures.full_rss_bytes,
                figures.args.pods,
            ),
            bytes_per_stream: per(
                figures.pods_rss_bytes,
                figures.full_rss_bytes,
                figures.args.nodes,
            ),
            cpu_idle_percent: figures.idle_cpu * 100.0,
            cpu_churn_percent: figures.churn_cpu * 100.0,
            bound_to_pushed_p50_ms: quantile(0.5),
            bound_to_pushed_p99_ms: quantile(0.99),
            bound_to_pushed_max_ms: quantile(1.0),
            bound: figures.pushed.len(),
            targets: Vec::new(),
        };
        let target = |figure, below, value: f64| Target {
            figure,
            below,
            met: value < below,
        };
        report.targets = vec![
            target("bytes_per_pod", TARGET_BYTES_PER_POD, report.bytes_per_pod),
            target(
                "bound_to_pushed_p99_ms",
                TARGET_PUSHED_P99_MS,
                report.bound_to_pushed_p99_ms,
            ),
            target(
                "cpu_idle_percent",
                TARGET_IDLE_CPU_PERCENT,
                report.cpu_idle_percent,
            ),
        ];
        report
    }

    /// Returns whether all targets are met.
    #[must_use]
    pub fn meets_targets(&self) -> bool {
        self.targets.iter().all(|target| target.met)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
        let rows = [
            (
                "cluster",
                format!(
                    "{} pods, {} nodes, {} namespaces, {} roles",
                    self.pods, self.nodes, self.namespaces, self.identities
                ),
            ),
            ("STS calls", self.sts_calls.to_string()),
            ("start to ready", format!("{:.0} ms", self.startup_ms)),
            (
                "all streams, all pushed",
                format!("{:.0} ms", self.all_pushed_ms),
            ),
            ("memory, empty", mib(self.empty_rss_bytes)),
            ("memory, pods", mib(self.pods_rss_bytes)),
            ("memory, pods + streams", mib(self.full_rss_bytes)),
            (
                "a pod, without streams",
                format!("{:.0} bytes", self.bytes_per_pod_without_streams),
            ),
            (
                "a pod, all included",
                format!("{:.0} bytes", self.bytes_per_pod),
            ),
            ("a stream", format!("{:.0} bytes", self.bytes_per_stream)),
            (
                "bound to pushed",
                format!(
                    "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {} pods, {} a second",
                    self.bound_to_pushed_p50_ms,
                    self.bound_to_pushed_p99_ms,
                    self.bound_to_pushed_max_ms,
                    self.bound,
                    self.rate
                ),
            ),
            (
                "CPU",
                format!(
                    "{:.2} % of a core idle, {:.1} % while pods come and go",
                    self.cpu_idle_percent, self.cpu_churn_percent
                ),
            ),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<26}{value}")?;
        }
        for Target { figure, below, met } in &self.targets {
            let met = if *met { "met" } else { "MISSED" };
            writeln!(f, "{figure:<26}below {below}: {met}")?;
        }
        Ok(())
    }
}
