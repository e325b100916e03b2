//! `hostNetwork` pods: what becomes of them by `--host-network-pods`.

use anyhow::{Context as _, Result, ensure};
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::FileCluster;
use testbed::sandbox::{NodeOptions, PodOptions, Qos};

use crate::play::{ask, eventually, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    ("host_network::passthrough", Needs::Programs, passthrough),
    ("host_network::annotated", Needs::Programs, annotated),
    ("host_network::deny", Needs::Programs, deny),
];

const OWN: &str = "a-reader";

/// What a pod hears when it asks for its role.
#[derive(Debug, Clone, Copy)]
enum Heard {
    OwnRole,
    NodeRole,
    Nothing,
}
use Heard::{NodeRole, Nothing, OwnRole};

fn passthrough() -> Result<()> {
    hear("passthrough", [NodeRole, NodeRole, NodeRole])
}

fn annotated() -> Result<()> {
    hear("annotated", [OwnRole, NodeRole, NodeRole])
}

fn deny() -> Result<()> {
    hear("deny", [OwnRole, Nothing, NodeRole])
}

/// A pod with a role, one with none, and one with a role that is exempt.
fn hear(mode: &str, expected: [Heard; 3]) -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    cluster.objects().put_namespace("kube-system", Some(".*"))?;
    let server = cluster.start_server(&[])?;
    let flags = [
        format!("--host-network-pods={mode}"),
        "--host-network-exempt=kube-system/aws-node-*".to_owned(),
    ];
    let agent = cluster.start_agent(&node, &flags.each_ref().map(String::as_str))?;
    let cast = [
        ("with-role", Some(OWN), Qos::Burstable),
        ("without", None, Qos::BestEffort),
        ("aws-node-x7z2p", Some(OWN), Qos::Guaranteed),
    ];
    // They come with the agent at work: cgroup first, as the kubelet does, or the server's word.
    for ((name, role, qos), expected) in cast.into_iter().zip(expected) {
        let pod = node.node().pod(PodOptions {
            qos,
            host_network: true,
            ..PodOptions::default()
        })?;
        cluster
            .objects()
            .put_pod(&pod, ("kube-system", name), role)?;
        eventually(|| {
            let outcome = ask(pod.place(), "")?.answer();
            match expected {
                Nothing => ensure!(outcome.is_err(), "{outcome:?}"),
                OwnRole => ensure!(outcome?.body.trim() == OWN, "not its own"),
                NodeRole => ensure!(outcome?.body.trim() == NODE_ROLE, "not the node's"),
            }
            Ok(())
        })
        .with_context(|| format!("{mode}: {name} must hear {expected:?}"))?;
    }
    // The node's own daemons are in no pod.
    let body = ask(node.node().place(), "")?.answer()?.body;
    ensure!(body.trim() == NODE_ROLE, "a daemon hears {body}");
    drop((agent, server));
    Ok(())
}
