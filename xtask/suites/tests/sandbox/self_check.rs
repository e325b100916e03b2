//! The connection that an agent makes to itself before it is ready. The agent runs as it does in a
//! cluster: as a process of its own `hostNetwork` pod.

use std::time::Duration;

use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::fixture::{ask, programs};
use testbed::kiam::{Agent, AgentOptions, SERVER_ADDRESS};
use testbed::sandbox::{NodeOptions, Pod, PodOptions, Qos};

const CAME: &str = "the agent's own connection reached the agent";
const LIMIT: Duration = Duration::from_secs(20);

#[track_caller]
fn own_pod(node: &FileClusterNode, qos: Qos) -> Pod {
    let options = PodOptions {
        qos,
        host_network: true,
        ..PodOptions::default()
    };
    node.node().pod(options).unwrap()
}

/// Starts an agent in a pod, with the UID of a pod as `--pod-uid`.
#[track_caller]
fn launch(node: &FileClusterNode, pod: &Pod, uid: &str, flags: &[&str]) -> Agent {
    let uid = format!("--pod-uid={uid}");
    let options = AgentOptions {
        tls: node.tls(),
        token_file: None,
        server: SERVER_ADDRESS,
        flags: &[flags, &[&uid]].concat(),
        starter: &[],
    };
    Agent::start(&programs(), node.node(), pod.place(), &options).unwrap()
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_is_ready_once_its_own_connection_has_arrived() {
    for (qos, mode) in [
        (Qos::Burstable, "passthrough"),
        (Qos::Guaranteed, "annotated"),
        (Qos::BestEffort, "deny"),
    ] {
        let cluster = FileCluster::new(&programs()).unwrap();
        let node = cluster.node("node-1", NodeOptions::default()).unwrap();
        cluster
            .objects()
            .put_namespace("team-a", Some(".*"))
            .unwrap();
        let alice = cluster
            .pod(&node, ("team-a", "alice"), Some("a-reader"))
            .unwrap();
        let server = cluster.start_server(&[]).unwrap();
        let own = own_pod(&node, qos);
        let flag = format!("--host-network-pods={mode}");
        let mut agent = launch(&node, &own, own.uid(), &[&flag]);
        agent.ready().unwrap();
        let output = agent.program().output();
        assert!(output.contains(CAME), "{mode}: {output}");
        assert!(ask(alice.place(), "").body == "a-reader", "{mode}");
        assert!(node.imds().traffic().bytes() == 0, "{mode}");
        // The agent's pod was redirected for that moment only.
        let own = ask(own.place(), "").body;
        assert!(own == testbed::doubles::imds::NODE_ROLE, "{mode}: {own}");
        drop((agent, server));
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_takes_over_once_its_own_connection_has_arrived() {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    let server = cluster.start_server(&[]).unwrap();
    let pods = [
        own_pod(&node, Qos::Burstable),
        own_pod(&node, Qos::Burstable),
    ];
    let mut first = launch(&node, &pods[0], pods[0].uid(), &[]);
    first.ready().unwrap();
    let second = launch(&node, &pods[1], pods[1].uid(), &[]);
    let ready = |line: &str| line.ends_with("ready").then_some(());
    second
        .program()
        .wait_for("that it is ready", LIMIT, ready)
        .unwrap();
    let output = second.program().output();
    assert!(output.contains(CAME), "{output}");
    first.stop().unwrap();
    drop((second, server));
}

/// The UID of another pod as `--pod-uid` stands for a program that sends the agent's connections
/// elsewhere.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_whose_own_connection_goes_elsewhere_exits() {
    for (mode, expected) in [
        ("passthrough", "did not reach the agent"),
        ("deny", "failed"),
    ] {
        let cluster = FileCluster::new(&programs()).unwrap();
        let node = cluster.node("node-1", NodeOptions::default()).unwrap();
        let server = cluster.start_server(&[]).unwrap();
        let (own, other) = (
            own_pod(&node, Qos::Burstable),
            own_pod(&node, Qos::Burstable),
        );
        let flag = format!("--host-network-pods={mode}");
        let agent = launch(&node, &own, other.uid(), &[&flag]);
        let ended = agent.finish(LIMIT).unwrap();
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!ended.status.success(), "{mode}: {output}");
        assert!(
            output.contains("pods would not be served") && output.contains(expected),
            "{mode}: {output}"
        );
        assert!(!output.contains(" ready\n"), "{mode}: {output}");
        let unknown = launch(
            &node,
            &own,
            "00000000-0000-4000-8000-000000000000",
            &[&flag],
        );
        let ended = unknown.finish(LIMIT).unwrap();
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(output.contains("no cgroup below --pods-cgroup"), "{output}");
        drop(server);
    }
}
