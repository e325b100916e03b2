//! `kiam-agent attach`: a node is guarded before its agent runs, and connections of pods to the
//! metadata service are closed.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::fixture::{ask, programs, teams, try_ask};
use testbed::kiam::METADATA_PORT;
use testbed::sandbox::{Finished, NodeOptions, Place, Pod, Program, run};

const LIMIT: Duration = Duration::from_secs(30);
/// Capabilities of the init container in the chart.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "dac_read_search", "sys_admin"];

/// Holds a connection to the metadata service and one within its own namespace, and prints the end
/// of the first and the state of the second.
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
/// Connects to the metadata service, then sends requests repeatedly.
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

/// A node with pods and no agent.
struct Unserved {
    // In the order in which they are dropped: the pod before its node.
    alice: Pod,
    _bob: Pod,
    node: FileClusterNode,
    namespaces: PathBuf,
    cluster: FileCluster,
}

impl Unserved {
    #[track_caller]
    fn new() -> Self {
        let cluster = FileCluster::new(&programs()).unwrap();
        let node = cluster.node("node-1", NodeOptions::default()).unwrap();
        let (alice, bob) = teams(&cluster, &node);
        // Container runtimes keep them in this way; that of the node is among them.
        let namespaces = cluster.sandbox().folder("namespaces").unwrap();
        for netns in [alice.place().netns(), node.node().place().netns()] {
            symlink(netns.path(), namespaces.join(netns.name())).unwrap();
        }
        Self {
            alice,
            _bob: bob,
            node,
            namespaces,
            cluster,
        }
    }

    /// Runs `kiam-agent attach` on the node, outside of pods.
    #[track_caller]
    fn attach(&self, capabilities: &[&str]) -> Finished {
        let node = self.node.node();
        let kept: String = capabilities
            .iter()
            .map(|name| format!(",+{name}"))
            .collect();
        let place = node.service("kiam-attach").unwrap();
        let mut command = place.command("sh");
        // A process of fewer capabilities may not open files of this one, but inherits descriptors.
        command
            .args(["-c", r#"exec 9<"$1" && shift && exec "$@""#, "sh"])
            .arg(node.bpffs().path())
            .arg("setpriv")
            .args([
                format!("--bounding-set=-all{kept}"),
                format!("--inh-caps=-all{kept}"),
                "--no-new-privs".to_owned(),
            ])
            .arg(programs().agent())
            .arg("attach")
            .args([
                format!("--host={}", node.ip()),
                format!("--port={METADATA_PORT}"),
                format!("--pods-cgroup={}", node.kubepods().path().display()),
                "--bpffs=/proc/self/fd/9".to_owned(),
                format!("--network-namespaces={}", self.namespaces.display()),
            ]);
        run("kiam-agent attach", command, LIMIT).unwrap()
    }
}

#[track_caller]
fn start(name: &str, place: &Place, script: &str) -> Program {
    let mut command = place.command("/usr/bin/python3");
    command.args(["-I", "-S", "-u", "-c", script]);
    let program = Program::start(name, command).unwrap();
    program
        .wait_for("that it is there", LIMIT, |line| {
            (line == "connected").then_some(())
        })
        .unwrap();
    program
}

/// Asserts that it succeeded and printed two lines that contain these texts.
#[track_caller]
fn assert_printed(finished: &Finished, expected: [&str; 2]) {
    let printed: Vec<_> = finished.stdout.lines().collect();
    assert!(
        finished.status.success() && printed.len() == 2,
        "{}{}",
        finished.stdout,
        finished.stderr
    );
    for (line, expected) in printed.iter().zip(expected) {
        assert!(line.contains(expected), "{line}, not {expected}");
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn connections_from_before_are_closed() {
    let unserved = Unserved::new();
    let (alice, node) = (unserved.alice.place(), unserved.node.node());
    let holder = start("an old connection", alice, HOLDER);
    // In the pod's network namespace but not in its cgroup: kiam must not touch it.
    let elsewhere = node.service("elsewhere").unwrap();
    let elsewhere = alice.with_cgroup(elsewhere.cgroup().clone());
    let bystander = start("a bystander", &elsewhere, BYSTANDER);
    assert_printed(
        &unserved.attach(&CAPABILITIES),
        [
            "attached the programs of kiam",
            "closed 1 connections to the metadata service in 1 network namespaces",
        ],
    );
    // ECONNABORTED.
    let ended = |line: &str| (line == "ended: 103, and the other b'x'").then_some(());
    holder.wait_for("that it has ended", LIMIT, ended).unwrap();
    let answered = |line: &str| (line == "answered").then_some(());
    bystander
        .wait_for_after(bystander.mark(), "an answer", LIMIT, answered)
        .unwrap();
    // Without an agent, pods are refused.
    let refused = try_ask(alice, "").answer();
    assert!(refused.is_err(), "with no agent there was {refused:?}");
    assert_printed(
        &unserved.attach(&CAPABILITIES),
        ["already attached to", "closed 0 connections"],
    );
    let _server = unserved.cluster.start_server(&[]).unwrap();
    let agent = unserved.cluster.start_agent(&unserved.node, &[]).unwrap();
    let answer = ask(alice, "");
    assert!(answer.body == "a-reader", "{answer:?}");
    let metrics = agent.admin("/metrics").unwrap().body;
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kiam_old_connections_closed_total "));
    assert!(count == Some("1"), "{count:?}");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn programs_of_a_running_agent_stay_in_place() {
    let unserved = Unserved::new();
    let _server = unserved.cluster.start_server(&[]).unwrap();
    let _agent = unserved.cluster.start_agent(&unserved.node, &[]).unwrap();
    let alice = unserved.alice.place();
    // For the kernel, the peer of this connection is the agent.
    let kept = start("a pod's connection", alice, BYSTANDER);
    assert_printed(
        &unserved.attach(&CAPABILITIES),
        ["already attached to", "closed 0 connections"],
    );
    let answered = |line: &str| (line == "answered").then_some(());
    kept.wait_for_after(kept.mark(), "an answer", LIMIT, answered)
        .unwrap();
    let answer = ask(alice, "");
    assert!(answer.body == "a-reader", "{answer:?}");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_capabilities_of_the_chart_suffice_and_a_missing_one_is_named() {
    let unserved = Unserved::new();
    let holder = start("an old connection", unserved.alice.place(), HOLDER);
    // SYS_ADMIN includes BPF.
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
        } = unserved.attach(&kept);
        assert!(
            !status.success() && stderr.contains(named),
            "without {missing}: {stdout}{stderr}"
        );
    }
    assert_printed(
        &unserved.attach(&CAPABILITIES),
        ["programs", "closed 1 connections"],
    );
    let ended = |line: &str| line.starts_with("ended").then_some(());
    holder.wait_for("that it has ended", LIMIT, ended).unwrap();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn files_that_are_not_namespaces_are_skipped() {
    let unserved = Unserved::new();
    // Container runtimes leave such files; the folder is read in any order.
    for name in ["a-left-behind", "z-left-behind"] {
        std::fs::write(unserved.namespaces.join(name), "").unwrap();
    }
    let _holder = start("an old connection", unserved.alice.place(), HOLDER);
    let finished = unserved.attach(&CAPABILITIES);
    assert_printed(
        &finished,
        ["attached the programs of kiam", "closed 1 connections"],
    );
    for name in ["a-left-behind", "z-left-behind"] {
        let mut lines = finished.stderr.lines().filter(|line| line.contains(name));
        let line = lines.next().expect("it is logged");
        assert!(line.contains("not a network namespace"), "{line}");
    }
}
