//! The agent's commands, on a node with pods.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::FileClusterNode;
use testbed::kiam::{METADATA_PORT, SERVER_PORT};
use testbed::sandbox::{CONTROL_IP, Finished};

use crate::play::{Play, ask, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "commands::the_doctor_finds_a_served_node_well",
        Needs::Programs,
        well,
    ),
    (
        "commands::the_doctor_names_what_is_wrong",
        Needs::Programs,
        ill,
    ),
    (
        "commands::in_the_agent_s_container_the_doctor_has_its_settings",
        Needs::Programs,
        beside_an_agent,
    ),
    (
        "commands::a_link_on_its_way_is_not_named_as_others",
        Needs::Programs,
        staged,
    ),
    (
        "commands::cleanup_gives_pods_the_node_s_service_back",
        Needs::Programs,
        cleanup,
    ),
];

/// Runs a command of the agent's on the node, outside of all pods.
fn command(node: &FileClusterNode, words: &[String]) -> Result<Finished> {
    let place = node.node().service("kiam-command")?;
    let mut command = place.command(programs()?.agent());
    command.env_clear().args(words);
    testbed::sandbox::run(
        "kiam-agent's command",
        command,
        std::time::Duration::from_secs(30),
    )
}

fn doctor(node: &FileClusterNode, flags: &[String]) -> Result<(bool, Value)> {
    let mut words = vec!["doctor".to_owned(), "--json".to_owned()];
    words.extend_from_slice(flags);
    let ended = command(node, &words)?;
    let report = serde_json::from_str(&ended.stdout);
    let report = report.with_context(|| format!("no report: {}{}", ended.stdout, ended.stderr))?;
    Ok((ended.status.success(), report))
}

fn flags(node: &FileClusterNode) -> Vec<String> {
    vec![
        format!("--host={}", node.node().ip()),
        format!("--port={METADATA_PORT}"),
        format!("--pods-cgroup={}", node.node().kubepods().path().display()),
        format!("--bpffs={}", node.node().bpffs().path().display()),
    ]
}

/// How a check ended, and what it found.
fn finding(report: &Value, check: &str) -> Result<(String, String)> {
    let findings = report["findings"].as_array().context("no findings")?;
    let found = findings.iter().find(|finding| finding["check"] == check);
    let found = found.with_context(|| format!("no {check:?} in {report}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("found")))
}

fn well() -> Result<()> {
    let play = Play::begin()?;
    // Something runs in a pod, whose network the agent is tried from.
    let mut sleeper = play.alice.place().command("sleep");
    sleeper.arg("60");
    let _sleeper = testbed::sandbox::Program::start("a pod's process", sleeper)?;
    let tls = play.node.tls();
    let mut flags = flags(&play.node);
    flags.extend([
        format!("--server-address={CONTROL_IP}:{SERVER_PORT}"),
        format!("--cert={}", tls.cert.display()),
        format!("--key={}", tls.key.display()),
        format!("--ca={}", tls.ca.display()),
    ]);
    let (well, report) = doctor(&play.node, &flags)?;
    ensure!(well, "{report}");
    for check in [
        "kernel",
        "BTF",
        "capabilities",
        "cgroup2",
        "pods' cgroup",
        "BPF file system",
        "kernel programs",
        "others on the hooks",
        "address",
        "agent from a pod",
        "certificates",
        "server",
    ] {
        let (state, found) = finding(&report, check)?;
        ensure!(state == "ok", "{check}: {state}: {found}");
    }
    let (_, found) = finding(&report, "BPF file system")?;
    ensure!(found.contains("5 programs of kiam's"), "{found}");
    // The node's own service answers without a token here.
    let (state, found) = finding(&report, "metadata service")?;
    ensure!(
        state == "warn" && found.contains("without a token"),
        "{found}"
    );

    Ok(())
}

fn ill() -> Result<()> {
    let play = Play::begin()?;
    let good = flags(&play.node);
    for (flag, check, named) in [
        ("--host=10.9.9.9", "address", "not this node's"),
        ("--host=127.0.0.1", "address", "no address that pods reach"),
        ("--bpffs=/tmp", "BPF file system", "no BPF file system"),
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
        let (well, report) = doctor(&play.node, &flags)?;
        let (state, found) = finding(&report, check)?;
        ensure!(!well && state == "fail", "{flag}: {state}: {found}");
        ensure!(found.contains(named), "{flag}: {found}");
    }
    Ok(())
}

/// As `kubectl exec` starts it: in the process namespace of a container whose process 1 is an agent.
/// That one is played, by a shell with an agent's command line: the sandbox's BPF file system is
/// found by a path that another process namespace has not.
fn beside_an_agent() -> Result<()> {
    const TOLD: &str = "--bpffs=/tmp";
    let play = Play::begin()?;
    let agent = programs()?;
    let agent = agent.agent().display();
    let script = format!("'{agent}' doctor --json; '{agent}' doctor --json --bpffs=/nowhere; true");
    let place = play.node.node().service("kiam-command")?;
    let mut command = place.command("unshare");
    command
        .env_clear()
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", "exec -a kiam-agent bash \"$@\"", "-"])
        .args(["-c", &script, "kiam-agent", TOLD]);
    let limit = std::time::Duration::from_secs(60);
    let ended = testbed::sandbox::run("kiam-agent's commands", command, limit)?;
    let reports: Result<Vec<Value>, _> = ended.stdout.lines().map(serde_json::from_str).collect();
    let reports = reports.with_context(|| format!("{}{}", ended.stdout, ended.stderr))?;
    let [told, given] = reports.as_slice() else {
        anyhow::bail!("{}{}", ended.stdout, ended.stderr);
    };
    let (_, found) = finding(told, "settings")?;
    ensure!(found.contains(TOLD), "{found}");
    let (_, found) = finding(told, "BPF file system")?;
    ensure!(found.contains("/tmp is no BPF file system"), "{found}");
    let (_, found) = finding(given, "BPF file system")?;
    ensure!(found.contains("/nowhere"), "{found}");
    Ok(())
}

/// While an agent takes over, a link of kiam's has another name than its program.
fn staged() -> Result<()> {
    let play = Play::begin()?;
    let links = play.node.node().bpffs().path().join("kiam/links");
    std::fs::rename(links.join("connect4"), links.join("connect4-new"))?;
    let (_, report) = doctor(&play.node, &flags(&play.node))?;
    let (state, found) = finding(&report, "others on the hooks")?;
    ensure!(state == "ok", "{state}: {found}");
    // Without the pins nobody can tell.
    let good = flags(&play.node);
    let flags: Vec<_> = good
        .into_iter()
        .map(|flag| match flag.split_once('=') {
            Some(("--bpffs", _)) => "--bpffs=/tmp".to_owned(),
            _ => flag,
        })
        .collect();
    let (_, report) = doctor(&play.node, &flags)?;
    let (state, found) = finding(&report, "others on the hooks")?;
    ensure!(
        state == "warn" && found.contains("cannot tell others' from kiam's own"),
        "{state}: {found}"
    );
    Ok(())
}

fn cleanup() -> Result<()> {
    let play = Play::begin()?;
    let bpffs = format!("--bpffs={}", play.node.node().bpffs().path().display());
    let words = ["cleanup".to_owned(), bpffs];
    play.agent.stop()?;
    let refused = ask(play.alice.place(), "")?.answer();
    ensure!(refused.is_err(), "with no agent there was {refused:?}");
    for expected in [
        ["removed 5 programs", "removed kiam's table from nf_tables"],
        [
            "nothing of kiam's is in /",
            "nothing of kiam's is in nf_tables",
        ],
    ] {
        let ended = command(&play.node, &words)?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        for expected in expected {
            ensure!(ended.stdout.contains(expected), "{}", ended.stdout);
        }
    }
    let answer = ask(play.alice.place(), "")?.answer()?;
    ensure!(answer.body.trim() == NODE_ROLE, "{answer:?}");
    Ok(())
}
