//! A server as its cluster grows: in pods, and in agents.

use anyhow::{Context as _, Result};

use super::plot::Plot;
use super::report::{Figure, Section};
use crate::load;
use testbed::kiam::Programs;

/// Pods, and a node for thirty of them.
const PODS: [u64; 4] = [1_000, 10_000, 50_000, 150_000];
const PODS_PER_NODE: u64 = 30;
const AGENTS: [u64; 4] = [10, 100, 1_000, 5_000];
/// Pods that the agents share.
const SHARED: u64 = 15_000;
const PODS_PER_ROLE: u64 = 50;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures.
///
/// # Errors
/// Fails when the server reports something wrong.
pub(super) fn measure(full: bool, programs: &Programs) -> Result<(Section, Vec<Plot>)> {
    // The sizes of the whole, or a tenth of them.
    let part = if full { 1 } else { 10 };
    let of = |pods: u64, nodes: u64| {
        load::measure(&load::Args::of(pods, nodes, pods / PODS_PER_ROLE), programs)
            .with_context(|| format!("{pods} pods on {nodes} nodes"))
    };
    let mut figures = Vec::new();
    let mut by_pods = Vec::new();
    for pods in PODS.map(|pods| pods / part) {
        let report = of(pods, pods.div_ceil(PODS_PER_NODE))?;
        add(&mut figures, "pods", pods, &report);
        by_pods.push((pods as f64, report));
    }
    let mut by_agents = Vec::new();
    for agents in AGENTS.map(|agents| agents / part) {
        let report = of(SHARED / part, agents)?;
        add(&mut figures, "agents", agents, &report);
        by_agents.push((agents as f64, report));
    }
    let curve = |name: &str, reports: &[(f64, load::Report)], of: fn(&load::Report) -> f64| {
        let points = reports.iter().map(|(x, report)| (*x, of(report)));
        (name.to_owned(), points.collect::<Vec<_>>())
    };
    let mut plots = Vec::new();
    for (names, x, reports) in [
        (
            ["pods-memory", "pods-latency", "pods-cpu"],
            "pods, thirty to a node",
            &by_pods,
        ),
        (
            ["agents-memory", "agents-latency", "agents-cpu"],
            if full {
                "agents that share 15,000 pods"
            } else {
                "agents that share 1,500 pods"
            },
            &by_agents,
        ),
    ] {
        let [memory, latency, cpu] = names;
        plots.push(Plot {
            name: memory,
            title: "Resident memory of one server",
            x,
            y: "MiB",
            curves: vec![
                curve("with streams", reports, |report| {
                    report.full_rss_bytes as f64 / MIB
                }),
                curve("pods alone", reports, |report| {
                    report.pods_rss_bytes as f64 / MIB
                }),
            ],
        });
        plots.push(Plot {
            name: latency,
            title: "A pod bound to its credentials on its node's stream",
            x,
            y: "ms",
            curves: vec![
                curve("p99", reports, |report| report.bound_to_pushed_p99_ms),
                curve("p50", reports, |report| report.bound_to_pushed_p50_ms),
            ],
        });
        plots.push(Plot {
            name: cpu,
            title: "CPU of one server while 100 pods a second come and go",
            x,
            y: "% of a core",
            curves: vec![curve("churn", reports, |report| report.cpu_churn_percent)],
        });
    }
    let section = Section {
        title: "A server as its cluster grows",
        path: "As under a cluster's load: first with thirty pods to a node, then the same pods on more and more nodes; fifty pods share a role.".into(),
        figures,
    };
    Ok((section, plots))
}

fn add(figures: &mut Vec<Figure>, what: &str, count: u64, report: &load::Report) {
    for (key, text, unit, value) in [
        (
            "rss_mib",
            "memory",
            "MiB",
            report.full_rss_bytes as f64 / MIB,
        ),
        (
            "bound_p99_ms",
            "bound to pushed, p99",
            "ms",
            report.bound_to_pushed_p99_ms,
        ),
        (
            "churn_cpu_percent",
            "CPU, pods coming and going",
            "% of a core",
            report.cpu_churn_percent,
        ),
        ("startup_ms", "start to ready", "ms", report.startup_ms),
    ] {
        let key = format!("growth_{what}_{count}_{key}");
        let text = format!("{count} {what}: {text}");
        figures.push(Figure::one(&key, &text, unit, value));
    }
}
