//! The connection that an agent makes itself before it says that it is ready. Here it runs as it does in a
//! cluster: as a process of a `hostNetwork` pod of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{Agent, AgentOptions, SERVER_ADDRESS};
use testbed::sandbox::{NodeOptions, Pod, PodOptions, Qos};

use crate::play::{ask, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "self_check::an_agent_is_ready_once_its_own_connection_has_come",
        Needs::Programs,
        comes,
    ),
    (
        "self_check::an_agent_takes_over_once_its_own_connection_has_come",
        Needs::Programs,
        takes_over,
    ),
    (
        "self_check::an_agent_whose_connection_goes_elsewhere_ends",
        Needs::Programs,
        goes_elsewhere,
    ),
];

const CAME: &str = "a connection of the agent's own came here, as its pod's";
const LIMIT: Duration = Duration::from_secs(20);

fn own_pod(node: &FileClusterNode, qos: Qos) -> Result<Pod> {
    node.node().pod(PodOptions {
        qos,
        host_network: true,
        ..PodOptions::default()
    })
}

/// An agent in a pod, which is told the UID of one.
fn launch(node: &FileClusterNode, pod: &Pod, uid: &str, flags: &[&str]) -> Result<Agent> {
    let uid = format!("--pod-uid={uid}");
    let options = AgentOptions {
        tls: node.tls(),
        token_file: None,
        server: SERVER_ADDRESS,
        flags: &[flags, &[&uid]].concat(),
        starter: &[],
    };
    Agent::start(&programs()?, node.node(), pod.place(), &options)
}

fn comes() -> Result<()> {
    for (qos, mode) in [
        (Qos::Burstable, "passthrough"),
        (Qos::Guaranteed, "annotated"),
        (Qos::BestEffort, "deny"),
    ] {
        let cluster = FileCluster::new(&programs()?)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        cluster.objects().put_namespace("team-a", Some(".*"))?;
        let alice = cluster.pod(&node, ("team-a", "alice"), Some("a-reader"))?;
        let server = cluster.start_server(&[])?;
        let own = own_pod(&node, qos)?;
        let flag = format!("--host-network-pods={mode}");
        let mut agent = launch(&node, &own, own.uid(), &[&flag])?;
        agent.ready()?;
        let said = agent.program().output();
        ensure!(said.contains(CAME), "{mode}: {said}");
        ensure!(
            ask(alice.place(), "")?.answer()?.body == "a-reader",
            "{mode}"
        );
        ensure!(node.imds().traffic().bytes() == 0, "{mode}");
        // It was another pod's for that moment only: from now on it is the agent's again.
        let own = ask(own.place(), "")?.answer()?.body;
        ensure!(own == testbed::doubles::imds::NODE_ROLE, "{mode}: {own}");
        drop((agent, server));
    }
    Ok(())
}

fn takes_over() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let server = cluster.start_server(&[])?;
    let pods = [
        own_pod(&node, Qos::Burstable)?,
        own_pod(&node, Qos::Burstable)?,
    ];
    let mut first = launch(&node, &pods[0], pods[0].uid(), &[])?;
    first.ready()?;
    let second = launch(&node, &pods[1], pods[1].uid(), &[])?;
    let ready = |line: &str| line.ends_with("ready").then_some(());
    second
        .program()
        .wait_for("that it is ready", LIMIT, ready)?;
    let said = second.program().output();
    ensure!(said.contains(CAME), "{said}");
    first.stop()?;
    drop((second, server));
    Ok(())
}

/// As where another program sends the agent's connections elsewhere: the one that is told to be the
/// agent's pod is another.
fn goes_elsewhere() -> Result<()> {
    for (mode, expected) in [("passthrough", "did not come here"), ("deny", "failed")] {
        let cluster = FileCluster::new(&programs()?)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        let server = cluster.start_server(&[])?;
        let (own, other) = (
            own_pod(&node, Qos::Burstable)?,
            own_pod(&node, Qos::Burstable)?,
        );
        let flag = format!("--host-network-pods={mode}");
        let agent = launch(&node, &own, other.uid(), &[&flag])?;
        let ended = agent.finish(LIMIT)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(!ended.status.success(), "{mode}: {said}");
        ensure!(
            said.contains("pods would not be served") && said.contains(expected),
            "{mode}: {said}"
        );
        ensure!(!said.contains(" ready\n"), "{mode}: {said}");
        let unknown = launch(
            &node,
            &own,
            "00000000-0000-4000-8000-000000000000",
            &[&flag],
        )?;
        let ended = unknown.finish(LIMIT)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(said.contains("has no cgroup below --pods-cgroup"), "{said}");
        drop(server);
    }
    Ok(())
}
