//! The agent's commands, on a node with pods.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::FileClusterNode;
use testbed::fixture::{Fixture, ask, programs, try_ask};
use testbed::kiam::{METADATA_PORT, SERVER_PORT};
use testbed::sandbox::{CONTROL_IP, Finished, Program, run};

/// Runs a command of `kiam-agent` on the node, outside of pods.
#[track_caller]
fn command(node: &FileClusterNode, words: &[String]) -> Finished {
    let place = node.node().service("kiam-command").unwrap();
    let mut command = place.command(programs().agent());
    command.env_clear().args(words);
    let limit = Duration::from_secs(30);
    run("kiam-agent's command", command, limit).unwrap()
}

#[track_caller]
fn doctor(node: &FileClusterNode, flags: &[String]) -> (bool, Value) {
    let mut words = vec!["doctor".to_owned(), "--json".to_owned()];
    words.extend_from_slice(flags);
    let ended = command(node, &words);
    let report = serde_json::from_str(&ended.stdout);
    let report = report
        .with_context(|| format!("no report: {}{}", ended.stdout, ended.stderr))
        .unwrap();
    (ended.status.success(), report)
}

fn flags(node: &FileClusterNode) -> Vec<String> {
    vec![
        format!("--host={}", node.node().ip()),
        format!("--port={METADATA_PORT}"),
        format!("--pods-cgroup={}", node.node().kubepods().path().display()),
        format!("--bpffs={}", node.node().bpffs().path().display()),
    ]
}

/// State and finding of a check.
#[track_caller]
fn finding(report: &Value, check: &str) -> (String, String) {
    let findings = report["findings"]
        .as_array()
        .context("no findings")
        .unwrap();
    let found = findings.iter().find(|finding| finding["check"] == check);
    let found = found
        .with_context(|| format!("no {check:?} in {report}"))
        .unwrap();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("found"))
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn doctor_passes_on_a_served_node() {
    let fixture = Fixture::start();
    // doctor connects to the agent from the network of a pod in which a process runs.
    let mut sleeper = fixture.alice.place().command("sleep");
    sleeper.arg("60");
    let _sleeper = Program::start("a pod's process", sleeper).unwrap();
    let tls = fixture.node.tls();
    let mut flags = flags(&fixture.node);
    flags.extend([
        format!("--server-address={CONTROL_IP}:{SERVER_PORT}"),
        format!("--cert={}", tls.cert.display()),
        format!("--key={}", tls.key.display()),
        format!("--ca={}", tls.ca.display()),
    ]);
    let (well, report) = doctor(&fixture.node, &flags);
    assert!(well, "{report}");
    for check in [
        "kernel",
        "BTF",
        "capabilities",
        "cgroup2",
        "pods' cgroup",
        "BPF file system",
        "kernel programs",
        "foreign programs",
        "address",
        "agent from a pod",
        "certificates",
        "server",
    ] {
        let (state, found) = finding(&report, check);
        assert!(state == "ok", "{check}: {state}: {found}");
    }
    let (_, found) = finding(&report, "BPF file system");
    assert!(found.contains("5 attached programs of kiam"), "{found}");
    // The metadata service of this node answers without a token.
    let (state, found) = finding(&report, "metadata service");
    assert!(
        state == "warn" && found.contains("without a token"),
        "{found}"
    );
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn doctor_names_each_problem() {
    let fixture = Fixture::start();
    let good = flags(&fixture.node);
    for (flag, check, named) in [
        ("--host=10.9.9.9", "address", "not an address of this node"),
        ("--host=127.0.0.1", "address", "pods cannot reach"),
        (
            "--bpffs=/tmp",
            "BPF file system",
            "not in a BPF file system",
        ),
        ("--pods-cgroup=/tmp", "cgroup2", "not in a cgroup2"),
        (
            "--server-address=10.0.0.1:9",
            "server",
            "--cert, --key and --ca",
        ),
    ] {
        let name = flag.split_once('=').map_or(flag, |(name, _)| name);
        let others = good.iter().filter(|other| !other.starts_with(name));
        let flags: Vec<_> = others.cloned().chain([flag.to_owned()]).collect();
        let (well, report) = doctor(&fixture.node, &flags);
        let (state, found) = finding(&report, check);
        assert!(!well && state == "fail", "{flag}: {state}: {found}");
        assert!(found.contains(named), "{flag}: {found}");
    }
}

/// `kubectl exec` runs a command in the process namespace of a container whose process 1 is an
/// agent. Here a shell with the agent's command line stands for the agent: the sandbox's BPF file
/// system is found by a path that does not exist in another process namespace.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn doctor_in_the_container_of_an_agent_uses_its_settings() {
    const SETTING: &str = "--bpffs=/tmp";
    let fixture = Fixture::start();
    let agent = programs();
    let agent = agent.agent().display();
    let script = format!("'{agent}' doctor --json; '{agent}' doctor --json --bpffs=/nowhere; true");
    let place = fixture.node.node().service("kiam-command").unwrap();
    let mut command = place.command("unshare");
    command
        .env_clear()
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", "exec -a kiam-agent bash \"$@\"", "-"])
        .args(["-c", &script, "kiam-agent", SETTING]);
    let limit = Duration::from_secs(60);
    let ended = run("kiam-agent's commands", command, limit).unwrap();
    let reports: Result<Vec<Value>, _> = ended.stdout.lines().map(serde_json::from_str).collect();
    let reports = reports
        .with_context(|| format!("{}{}", ended.stdout, ended.stderr))
        .unwrap();
    let [configured, unconfigured] = reports.as_slice() else {
        panic!("{}{}", ended.stdout, ended.stderr);
    };
    let (_, found) = finding(configured, "settings");
    assert!(found.contains(SETTING), "{found}");
    let (_, found) = finding(configured, "BPF file system");
    assert!(
        found.contains("/tmp is not in a BPF file system"),
        "{found}"
    );
    let (_, found) = finding(unconfigured, "BPF file system");
    assert!(found.contains("/nowhere"), "{found}");
}

/// While an agent takes over, the name of a link differs from that of its program.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn doctor_does_not_report_a_staged_link_as_foreign() {
    let fixture = Fixture::start();
    let links = fixture.node.node().bpffs().path().join("kiam/links");
    std::fs::rename(links.join("connect4"), links.join("connect4-new")).unwrap();
    let (_, report) = doctor(&fixture.node, &flags(&fixture.node));
    let (state, found) = finding(&report, "foreign programs");
    assert!(state == "ok", "{state}: {found}");
    // Without the pins, foreign programs cannot be distinguished.
    let good = flags(&fixture.node);
    let flags: Vec<_> = good
        .into_iter()
        .map(|flag| match flag.split_once('=') {
            Some(("--bpffs", _)) => "--bpffs=/tmp".to_owned(),
            _ => flag,
        })
        .collect();
    let (_, report) = doctor(&fixture.node, &flags);
    let (state, found) = finding(&report, "foreign programs");
    assert!(
        state == "warn" && found.contains("cannot tell programs of kiam from others"),
        "{state}: {found}"
    );
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn cleanup_restores_the_metadata_service_of_the_node() {
    let fixture = Fixture::start();
    let bpffs = format!("--bpffs={}", fixture.node.node().bpffs().path().display());
    let words = ["cleanup".to_owned(), bpffs];
    fixture.agent.stop().unwrap();
    let refused = try_ask(fixture.alice.place(), "").answer();
    assert!(refused.is_err(), "with no agent there was {refused:?}");
    for expected in [
        [
            "removed 5 programs",
            "removed the table of kiam from nf_tables",
        ],
        ["nothing of kiam in /", "nothing of kiam in nf_tables"],
    ] {
        let ended = command(&fixture.node, &words);
        assert!(ended.status.success(), "{}", ended.stderr);
        for expected in expected {
            assert!(ended.stdout.contains(expected), "{}", ended.stdout);
        }
    }
    let answer = ask(fixture.alice.place(), "");
    assert!(answer.body.trim() == NODE_ROLE, "{answer:?}");
}
