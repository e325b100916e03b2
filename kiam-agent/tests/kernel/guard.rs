//! No packet of a pod reaches the metadata service. Packets are counted there, and each attack is
//! first shown to succeed without a guard.

use kiam_agent::kernel::{Programs, Redirect};

use crate::agent::{Agent, redirect};
use crate::fixture::{METADATA, METADATA_V6, Node, Pod};

const UID: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const MAPPED: &str = "::ffff:169.254.169.254";

/// Attempts of the client, and the error of each when it is refused.
const ATTACKS: &[(&[&str], &str)] = &[
    (&["tcp", METADATA, "443", "timeout=0.2"], "EPERM"),
    (&["tcp", MAPPED, "443", "timeout=0.2"], "EPERM"),
    (&["tcp", METADATA_V6, "443", "timeout=0.2"], "EPERM"),
    (&["udp", METADATA, "80"], "EPERM"),
    (&["udp", MAPPED, "80"], "EPERM"),
    (&["udp", METADATA_V6, "80"], "EPERM"),
    (&["udp_connect", METADATA, "80"], "EPERM"),
    (&["udp_connect", METADATA_V6, "80"], "EPERM"),
    (&["ping", METADATA, "0"], "EPERM"),
    (&["ping", METADATA_V6, "0"], "EPERM"),
    (&["forge_to", METADATA, "80"], "EPERM"),
    (&["source_route", "10.0.1.1", "80"], "EPERM"),
];

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn no_packet_of_a_pod_reaches_the_metadata_service() {
    let node = Node::new();
    let pod = node.pod(UID);
    for (attack, _) in ATTACKS {
        let count = node.count(&pod, || drop(pod.run(attack)));
        assert_ne!(count, 0, "{attack:?} is no attack");
    }
    let agent = Agent::start(&node);
    refused(&node, &pod);
    drop(agent);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn no_packet_of_a_pod_passes_without_a_configuration() {
    let node = Node::new();
    let pod = node.pod(UID);
    let programs = Programs::attach_unconfigured(node.pods_cgroup().path(), node.bpffs()).unwrap();
    refused(&node, &pod);
    drop(programs);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn packets_pass_where_the_egress_guard_is_off() {
    let node = Node::new();
    let pod = node.pod(UID);
    let guard_egress = false;
    let programs = Programs::attach(&Redirect {
        guard_egress,
        ..redirect(&node)
    });
    for to in [METADATA, METADATA_V6] {
        let count = node.count(&pod, || drop(pod.run(&["ping", to, "0"])));
        assert_ne!(count, 0, "{to}");
        // Connections are still redirected or refused.
        let count = node.count(&pod, || {
            let report = pod.run(&["tcp", to, "443", "timeout=0.2"]);
            assert_eq!(report.error.as_deref(), Some("EPERM"), "{to}");
        });
        assert_eq!(count, 0, "{to}");
    }
    drop(programs.unwrap());
    // The next agent attaches the guard again.
    let agent = Agent::start(&node);
    refused(&node, &pod);
    drop(agent);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_metadata_service_is_found_anywhere_in_ip_options() {
    let node = Node::new();
    let pod = node.pod(UID);
    let attempt = ["options", "10.0.1.1", "80"];
    // One to thirty-seven positions in options of ten sizes.
    assert_eq!(
        pod.run(&attempt).count,
        Some((0..10).map(|n| 4 * n + 1).sum())
    );
    let agent = Agent::start(&node);
    let report = pod.run(&attempt);
    assert_eq!(
        (report.count, &report.error),
        (Some(0), &None),
        "{report:?}"
    );
    drop(agent);
}

fn refused(node: &Node, pod: &Pod) {
    for (attack, error) in ATTACKS {
        let count = node.count(pod, || {
            let report = pod.run(attack);
            assert_eq!(report.error.as_deref(), Some(*error), "{attack:?}");
        });
        assert_eq!(count, 0, "{attack:?}");
    }
}
