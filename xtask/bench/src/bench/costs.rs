//! Cost of idle programs: memory, CPU, disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;
use toolchain::exec;

use super::lives::{MANY, crowd};
use super::plot::Plot;
use super::report::{Aim, Figure, Section};
use super::{Args, METADATA, ROLE_PATH, client_command};
use crate::load;
use pod_client::flood::How;
use testbed::file_cluster::FileCluster;
use testbed::kiam::{Agent, Programs};
use testbed::sandbox::{NodeOptions, Program};

const MIB: f64 = 1024.0 * 1024.0;
const MOST: usize = 500;
const HOLDERS: usize = 16;
const EACH: usize = 63;
const SETTLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);
const STARTS: usize = 7;

/// Measures agents.
///
/// # Errors
/// Fails when the sandbox fails.
pub(super) fn agent(cluster: &FileCluster, pod_client: &Path) -> Result<(Section, Plot)> {
    let empty = cluster.node("node-empty", NodeOptions::default())?;
    let agent = cluster.start_agent(&empty, &[])?;
    let nothing = resident(&agent)?;
    agent.stop()?;

    let node = cluster.node("node-full", NodeOptions::default())?;
    crowd(cluster, &node, MANY)?;
    let agent = cluster.start_agent(&node, &[])?;
    let some = resident(&agent)?;
    let anonymous = memory(agent.program().pid(), "RssAnon:")?;
    let (before, begun) = (cpu(agent.program().pid())?, Instant::now());
    std::thread::sleep(IDLE);
    let idle = (cpu(agent.program().pid())? - before) / begun.elapsed().as_secs_f64();

    crowd(cluster, &node, MOST - HOLDERS)?;
    let pods = (0..HOLDERS)
        .map(|number| {
            let name = format!("holder-{number}");
            cluster.pod(&node, ("team-a", &name), Some("a-reader"))
        })
        .collect::<Result<Vec<_>>>()?;
    let many = resident(&agent)?;
    let mut clients = Vec::new();
    for pod in &pods {
        let mut command = client_command(pod, pod_client, How::Hold, METADATA, ROLE_PATH);
        // The agent closes a connection without a request after five seconds.
        command.args([&format!("--connections={EACH}"), "--time=3000"]);
        clients.push(Program::start("the pod's client", command)?);
    }
    for client in &clients {
        client.wait_for("that it holds", LIMIT, |line| {
            (line == "holding").then_some(())
        })?;
    }
    let held = memory(agent.program().pid(), "VmRSS:")?;
    let points = [(0, nothing), (MANY, some), (MOST, many)];
    let points = points.map(|(pods, bytes)| (pods as f64, bytes / MIB));
    let plot = Plot {
        name: "agent-memory",
        title: "Resident memory of one agent",
        x: "pods",
        y: "MiB",
        curves: vec![
            ("agent".into(), points.to_vec()),
            ("1,008 open".into(), vec![(MOST as f64, held / MIB)]),
        ],
    };
    let section = Section {
        title: "An agent's memory and CPU",
        path: "`VmRSS` and CPU time of a `kiam-agent` (release) in the sandbox, with a real stream of `kiam-server`; five pods share a role. The connections are of 16 pods, through the kernel's rewriting, and each has begun to ask.".into(),
        figures: vec![
            Figure::one("agent_rss_mib_0", "no pods", "MiB", nothing / MIB).aiming(Aim::AtMost(12.0)),
            Figure::one("agent_rss_mib_110", "110 pods", "MiB", some / MIB).aiming(Aim::AtMost(12.0)),
            Figure::one("agent_anonymous_mib_110", "110 pods, without what is of the executable's file", "MiB", anonymous / MIB),
            Figure::one("agent_rss_mib_500", "500 pods", "MiB", many / MIB).aiming(Aim::AtMost(16.0)),
            Figure::one("agent_rss_mib_500_1000", "500 pods and 1,008 open connections", "MiB", held / MIB).aiming(Aim::AtMost(16.0)),
            Figure::one("agent_idle_cpu_percent", "CPU with 110 pods that ask nothing", "% of a core", idle * 100.0).aiming(Aim::AtMost(0.1)),
        ],
    };
    Ok((section, plot))
}

/// Measures a server under load.
///
/// # Errors
/// Fails when the server reports something wrong.
pub(super) fn server(args: &Args, programs: &Programs) -> Result<Section> {
    let (pods, nodes) = if args.full {
        (150_000, 5_000)
    } else {
        (15_000, 500)
    };
    let report = load::measure(&load::Args::of(pods, nodes, pods / 50), programs)?;
    let mib = |bytes: u64| bytes as f64 / MIB;
    Ok(Section {
        title: "A server under a cluster's load",
        path: format!(
            "`kiam-server` (release), over loopback: {pods} pods from a double of the Kubernetes API in its own JSON, {nodes} agents' streams with mutual TLS, {} roles from a double of STS. `cargo xtask load` by itself does the same.",
            report.identities
        ),
        figures: vec![
            Figure::one(
                "server_rss_mib_0",
                "memory, no pods",
                "MiB",
                mib(report.empty_rss_bytes),
            ),
            Figure::one(
                "server_rss_mib_pods",
                "memory, pods without streams",
                "MiB",
                mib(report.pods_rss_bytes),
            ),
            Figure::one(
                "server_rss_mib_full",
                "memory, pods, streams and credentials",
                "MiB",
                mib(report.full_rss_bytes),
            ),
            Figure::one(
                "server_bytes_per_pod",
                "a pod, all included",
                "bytes",
                report.bytes_per_pod,
            )
            .aiming(Aim::AtMost(1536.0)),
            Figure::one(
                "server_bytes_per_stream",
                "a stream with its pods",
                "bytes",
                report.bytes_per_stream,
            ),
            Figure::one(
                "server_startup_ms",
                "process start to all pods read",
                "ms",
                report.startup_ms,
            ),
            Figure::one(
                "server_bound_p50_ms",
                "pod bound to credentials on its stream, p50",
                "ms",
                report.bound_to_pushed_p50_ms,
            ),
            Figure::one(
                "server_bound_p99_ms",
                "the same, p99",
                "ms",
                report.bound_to_pushed_p99_ms,
            )
            .aiming(Aim::AtMost(50.0)),
            Figure::one(
                "server_idle_cpu_percent",
                "CPU, nothing happening",
                "% of a core",
                report.cpu_idle_percent,
            )
            .aiming(Aim::AtMost(1.0)),
            Figure::one(
                "server_churn_cpu_percent",
                "CPU, 100 pods a second come and go",
                "% of a core",
                report.cpu_churn_percent,
            ),
        ],
    })
}

/// Measures the idle programs.
///
/// # Errors
/// Fails when they cannot be read or started.
pub(super) fn programs(programs: &Programs) -> Result<Section> {
    let mut figures = Vec::new();
    for (name, path) in [("agent", programs.agent()), ("server", programs.server())] {
        let size = std::fs::metadata(path)?.len() as f64 / MIB;
        let mut starts = Vec::new();
        for _ in 0..STARTS {
            let begun = Instant::now();
            exec(Command::new(path).arg("--version"))?;
            starts.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        figures.push(Figure::one(
            &format!("{name}_binary_mib"),
            &format!("kiam-{name}: executable"),
            "MiB",
            size,
        ));
        figures.push(Figure::of(
            &format!("{name}_version_ms"),
            &format!("kiam-{name}: `--version`, start to end"),
            "ms",
            &starts,
        ));
    }
    Ok(Section {
        title: "Programs",
        path: "The executables as they are built in release mode.".into(),
        figures,
    })
}

/// Resident memory once it is stable, in bytes.
fn resident(agent: &Agent) -> Result<f64> {
    std::thread::sleep(SETTLE);
    memory(agent.program().pid(), "VmRSS:")
}

/// Field of proc_pid_status(5), in bytes.
fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.with_context(|| format!("no {field}"))?;
    Ok(kib.trim().parse::<f64>()? * 1024.0)
}

/// CPU time of all threads, in seconds, to the nanosecond (the first field of `schedstat`).
fn cpu(pid: u32) -> Result<f64> {
    let mut nanos = 0.0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(nanos / 1e9)
}
