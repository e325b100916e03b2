//! `hostNetwork` pods, by each mode of `--host-network-pods`.

use anyhow::{Context as _, Result, ensure};
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::FileCluster;
use testbed::fixture::{ask, eventually, programs, try_ask};
use testbed::sandbox::{NodeOptions, PodOptions, Qos};

const OWN: &str = "a-reader";

/// Answer to a pod that requests its role.
#[derive(Debug, Clone, Copy)]
enum Gets {
    OwnRole,
    NodeRole,
    Nothing,
}
use Gets::{NodeRole, Nothing, OwnRole};

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn passthrough_gives_host_network_pods_the_role_of_the_node() {
    assert_gets("passthrough", [NodeRole, NodeRole, NodeRole]);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn annotated_gives_host_network_pods_their_own_role_or_that_of_the_node() {
    assert_gets("annotated", [OwnRole, NodeRole, NodeRole]);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn deny_gives_host_network_pods_their_own_role_or_nothing() {
    assert_gets("deny", [OwnRole, Nothing, NodeRole]);
}

/// Asserts the answers to a pod with a role, one without, and an exempt one with a role.
#[track_caller]
fn assert_gets(mode: &str, expected: [Gets; 3]) {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    cluster
        .objects()
        .put_namespace("kube-system", Some(".*"))
        .unwrap();
    let server = cluster.start_server(&[]).unwrap();
    let flags = [
        format!("--host-network-pods={mode}"),
        "--host-network-exempt=kube-system/aws-node-*".to_owned(),
    ];
    let agent = cluster
        .start_agent(&node, &flags.each_ref().map(String::as_str))
        .unwrap();
    let pods = [
        ("with-role", Some(OWN), Qos::Burstable),
        ("without", None, Qos::BestEffort),
        ("aws-node-x7z2p", Some(OWN), Qos::Guaranteed),
    ];
    // They start while the agent runs. As with a kubelet, the cgroup exists before the pod is known.
    for ((name, role, qos), expected) in pods.into_iter().zip(expected) {
        let pod = node
            .node()
            .pod(PodOptions {
                qos,
                host_network: true,
                ..PodOptions::default()
            })
            .unwrap();
        cluster
            .objects()
            .put_pod(&pod, ("kube-system", name), role)
            .unwrap();
        let check = || -> Result<()> {
            let outcome = try_ask(pod.place(), "").answer();
            match expected {
                Nothing => ensure!(outcome.is_err(), "{outcome:?}"),
                OwnRole => ensure!(outcome?.body.trim() == OWN, "not its own"),
                NodeRole => ensure!(outcome?.body.trim() == NODE_ROLE, "not the node's"),
            }
            Ok(())
        };
        eventually(|| check().with_context(|| format!("{mode}: {name} must get {expected:?}")));
    }
    // Daemons of the node are in no pod.
    let body = ask(node.node().place(), "").body;
    assert!(body.trim() == NODE_ROLE, "a daemon gets {body}");
    drop((agent, server));
}
