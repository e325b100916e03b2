//! The system calls that a request makes in the agent, counted by strace.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::report::{Figure, Section};
use super::{METADATA, ROLE_PATH, client_command};
use pod_client::flood::How;
use testbed::file_cluster::FileCluster;
use testbed::kiam::Agent;
use testbed::sandbox::{NodeOptions, Program, run};

const LIMIT: Duration = Duration::from_secs(30);
/// strace slows the agent much; these are still enough to lose all else among them.
const LEAST: f64 = 500.0;
/// Calls for each request below which a system call belongs to timers and not to requests.
const SELDOM: f64 = 0.02;

/// Counts them, of a request and of an exchange of three.
///
/// # Errors
/// Fails when the sandbox fails, or strace cannot be used.
pub(super) fn measure(cluster: &FileCluster, pod_client: &Path) -> Result<Section> {
    let node = cluster.node("node-traced", NodeOptions::default())?;
    let pod = cluster.pod(&node, ("team-a", "traced"), Some("a-reader"))?;
    let agent = cluster.start_agent(&node, &[])?;
    let mut figures = Vec::new();
    for (how, key, words) in [
        (How::Connect, "new", "a request"),
        (How::Exchange, "exchange", "an exchange of IMDSv2"),
    ] {
        let log = cluster.sandbox().scratch().join("system-calls");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o"]).arg(&log);
        strace.arg(format!("--attach={}", agent.program().pid()));
        let strace = Program::start("strace", strace)?;
        strace.wait_for("that it is attached", LIMIT, |line| {
            line.contains("attached").then_some(())
        })?;
        let before = answered(&agent)?;
        let mut client = client_command(&pod, pod_client, how, METADATA, ROLE_PATH);
        client.args(["--connections=1", "--time=2000"]);
        let ended = run("the pod's client", client, LIMIT)?;
        ensure!(ended.status.success(), "the client: {}", ended.stderr);
        let requests = answered(&agent)? - before;
        ensure!(requests > LEAST, "only {requests} requests were traced");
        strace.signal(Signal::SIGINT)?;
        strace.finish(LIMIT)?;
        let table = std::fs::read_to_string(&log).context("strace wrote nothing")?;
        let calls = calls(&table)?;
        let each = |calls: f64| calls / requests;
        let total: f64 = calls.iter().map(|(_, calls)| each(*calls)).sum();
        let name = format!("{words}: all");
        figures.push(Figure::one(
            &format!("system_calls_{key}"),
            &name,
            "calls",
            total,
        ));
        for (call, calls) in calls.iter().filter(|(_, calls)| each(*calls) > SELDOM) {
            let key = format!("system_calls_{key}_{call}");
            let name = format!("{words}: {call}");
            figures.push(Figure::one(&key, &name, "calls", each(*calls)));
        }
    }
    Ok(Section {
        title: "System calls",
        path: "Of a `kiam-agent` (release) whose pod asks on one connection at a time, by `strace -f -c`, divided by the requests that the agent's own metrics count meanwhile.".into(),
        figures,
    })
}

fn answered(agent: &Agent) -> Result<f64> {
    let metrics = agent.admin("/metrics")?.body;
    let name = "kiam_metadata_success_total{handler=\"credentials\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(count.map_or(Ok(0.0), str::parse)?)
}

/// `% time  seconds  usecs/call  calls  [errors]  syscall`, between two rulers.
fn calls(table: &str) -> Result<Vec<(String, f64)>> {
    let rows = table.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [share, _, _, calls, .., name] = words[..] else {
            return None;
        };
        share.parse::<f64>().ok()?;
        (name != "total").then_some((name.to_owned(), calls.parse().ok()?))
    });
    let mut rows: Vec<(String, f64)> = rows.collect();
    ensure!(!rows.is_empty(), "strace wrote no table:\n{table}");
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_and_without_errors() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     50.00    0.000200          10        20         5 recvfrom\n \
                     50.00    0.000200           5        40           writev\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.000400           6        60         5 total\n";
        let expected = [("writev".to_owned(), 40.0), ("recvfrom".to_owned(), 20.0)];
        assert_eq!(calls(table).unwrap(), expected);
        assert!(calls("").is_err());
    }
}
