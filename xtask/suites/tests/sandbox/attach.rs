//! `kiam-agent attach`: a node is guarded before its agent runs, and what pods had open with the
//! metadata service is closed.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::METADATA_PORT;
use testbed::sandbox::{Finished, NodeOptions, Place, Pod, Program, run};

use crate::play::{ask, cast, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "attach::connections_from_before_are_closed",
        Needs::Programs,
        closed,
    ),
    (
        "attach::a_running_agent_s_programs_are_left_alone",
        Needs::Programs,
        left_alone,
    ),
    (
        "attach::the_chart_s_capabilities_are_enough_and_one_that_is_missing_is_named",
        Needs::Programs,
        rights,
    ),
    (
        "attach::what_is_no_namespace_is_passed_over",
        Needs::Programs,
        passed_over,
    ),
];

const LIMIT: Duration = Duration::from_secs(30);
/// As the chart has them.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "dac_read_search", "sys_admin"];

/// Has a connection with the metadata service and one within its own namespace, and says what becomes
/// of both.
const HOLDER: &str = r#"
import socket
old = socket.create_connection(("169.254.169.254", 80), 5)
door = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(door.getsockname(), 5)
far, _ = door.accept()
print("connected", flush=True)
old.settimeout(30)
try:
    old.recv(1)
    print("it lives")
except OSError as error:
    far.send(b"x")
    print(f"ended: {error.errno}, and the other {near.recv(1)}", flush=True)
"#;
/// Asks again and again, each time on a connection of its own.
const BYSTANDER: &str = r#"
import http.client, time
service = http.client.HTTPConnection("169.254.169.254", timeout=5)
service.connect()
print("connected", flush=True)
while True:
    service.request("GET", "/latest/meta-data/iam/security-credentials/")
    service.getresponse().read()
    print("answered", flush=True)
    time.sleep(0.1)
"#;

/// A node with a pod and no agent.
struct Scene {
    // In the order in which they are dropped: the pod before its node.
    alice: Pod,
    _bob: Pod,
    node: FileClusterNode,
    namespaces: PathBuf,
    cluster: FileCluster,
}

impl Scene {
    fn new() -> Result<Self> {
        let cluster = FileCluster::new(&programs()?)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        let (alice, bob) = cast(&cluster, &node)?;
        // As runtimes keep them; the node's own is among them.
        let namespaces = cluster.sandbox().folder("namespaces")?;
        for netns in [alice.place().netns(), node.node().place().netns()] {
            symlink(netns.path(), namespaces.join(netns.name()))?;
        }
        Ok(Self {
            alice,
            _bob: bob,
            node,
            namespaces,
            cluster,
        })
    }

    /// `kiam-agent attach`, on the node, in no pod.
    fn attach(&self, capabilities: &[&str]) -> Result<Finished> {
        let node = self.node.node();
        let kept: String = capabilities
            .iter()
            .map(|name| format!(",+{name}"))
            .collect();
        let place = node.service("kiam-attach")?;
        let mut command = place.command("sh");
        // A process of fewer capabilities may not look into this one's files, but has what it inherits.
        command
            .args(["-c", r#"exec 9<"$1" && shift && exec "$@""#, "sh"])
            .arg(node.bpffs().path())
            .arg("setpriv")
            .args([
                format!("--bounding-set=-all{kept}"),
                format!("--inh-caps=-all{kept}"),
                "--no-new-privs".to_owned(),
            ])
            .arg(programs()?.agent())
            .arg("attach")
            .args([
                format!("--host={}", node.ip()),
                format!("--port={METADATA_PORT}"),
                format!("--pods-cgroup={}", node.kubepods().path().display()),
                "--bpffs=/proc/self/fd/9".to_owned(),
                format!("--network-namespaces={}", self.namespaces.display()),
            ]);
        run("kiam-agent attach", command, LIMIT)
    }
}

fn start(name: &str, place: &Place, script: &str) -> Result<Program> {
    let mut command = place.command("/usr/bin/python3");
    command.args(["-I", "-S", "-u", "-c", script]);
    let program = Program::start(name, command)?;
    program.wait_for("that it is there", LIMIT, |line| {
        (line == "connected").then_some(())
    })?;
    Ok(program)
}

fn said(finished: &Finished, lines: [&str; 2]) -> Result<()> {
    let said: Vec<_> = finished.stdout.lines().collect();
    ensure!(
        finished.status.success() && said.len() == 2,
        "{}{}",
        finished.stdout,
        finished.stderr
    );
    for (said, expected) in said.iter().zip(lines) {
        ensure!(said.contains(expected), "{said}, not {expected}");
    }
    Ok(())
}

fn closed() -> Result<()> {
    let scene = Scene::new()?;
    let (alice, node) = (scene.alice.place(), scene.node.node());
    let holder = start("an old connection", alice, HOLDER)?;
    // In the pod's network namespace, and not in its cgroup: nothing of kiam's concern.
    let elsewhere = node.service("elsewhere")?;
    let elsewhere = alice.with_cgroup(elsewhere.cgroup().clone());
    let bystander = start("a bystander", &elsewhere, BYSTANDER)?;
    said(
        &scene.attach(&CAPABILITIES)?,
        [
            "attached kiam's programs",
            "closed 1 connections to the metadata service in 1 network namespaces",
        ],
    )?;
    // ECONNABORTED.
    let ended = |line: &str| (line == "ended: 103, and the other b'x'").then_some(());
    holder.wait_for("that it has ended", LIMIT, ended)?;
    let answered = |line: &str| (line == "answered").then_some(());
    bystander.wait_for_after(bystander.mark(), "an answer", LIMIT, answered)?;
    // Without an agent pods are refused.
    let refused = ask(alice, "")?.answer();
    ensure!(refused.is_err(), "with no agent there was {refused:?}");
    said(
        &scene.attach(&CAPABILITIES)?,
        ["at work on", "closed 0 connections"],
    )?;
    let _server = scene.cluster.start_server(&[])?;
    let agent = scene.cluster.start_agent(&scene.node, &[])?;
    let answer = ask(alice, "")?.answer()?;
    ensure!(answer.body == "a-reader", "{answer:?}");
    let metrics = agent.admin("/metrics")?.body;
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kiam_old_connections_closed_total "));
    ensure!(count == Some("1"), "{count:?}");
    Ok(())
}

fn left_alone() -> Result<()> {
    let scene = Scene::new()?;
    let _server = scene.cluster.start_server(&[])?;
    let _agent = scene.cluster.start_agent(&scene.node, &[])?;
    let alice = scene.alice.place();
    // To the kernel this one's far end is the agent.
    let kept = start("a pod's connection", alice, BYSTANDER)?;
    said(
        &scene.attach(&CAPABILITIES)?,
        ["at work on", "closed 0 connections"],
    )?;
    let answered = |line: &str| (line == "answered").then_some(());
    kept.wait_for_after(kept.mark(), "an answer", LIMIT, answered)?;
    let answer = ask(alice, "")?.answer()?;
    ensure!(answer.body == "a-reader", "{answer:?}");
    Ok(())
}

fn rights() -> Result<()> {
    let scene = Scene::new()?;
    let holder = start("an old connection", scene.alice.place(), HOLDER)?;
    // Not BPF, which is in SYS_ADMIN.
    for (missing, named) in [
        ("net_admin", "NET_ADMIN"),
        ("dac_read_search", "DAC_READ_SEARCH"),
        ("sys_admin", "SYS_ADMIN"),
    ] {
        let kept = CAPABILITIES.iter().filter(|kept| **kept != missing);
        let kept: Vec<_> = kept.copied().collect();
        let Finished {
            status,
            stdout,
            stderr,
        } = scene.attach(&kept)?;
        ensure!(
            !status.success() && stderr.contains(named),
            "without {missing}: {stdout}{stderr}"
        );
    }
    said(
        &scene.attach(&CAPABILITIES)?,
        ["programs", "closed 1 connections"],
    )?;
    let ended = |line: &str| line.starts_with("ended").then_some(());
    holder.wait_for("that it has ended", LIMIT, ended)
}

fn passed_over() -> Result<()> {
    let scene = Scene::new()?;
    // As runtimes leave behind; whatever order the folder is read in.
    for name in ["a-left-behind", "z-left-behind"] {
        std::fs::write(scene.namespaces.join(name), "")?;
    }
    let _holder = start("an old connection", scene.alice.place(), HOLDER)?;
    let finished = scene.attach(&CAPABILITIES)?;
    said(
        &finished,
        ["attached kiam's programs", "closed 1 connections"],
    )?;
    for name in ["a-left-behind", "z-left-behind"] {
        let mut told = finished.stderr.lines().filter(|line| line.contains(name));
        let told = told.next().context("nothing is said of it")?;
        ensure!(told.contains("no network namespace"), "{told}");
    }
    Ok(())
}
