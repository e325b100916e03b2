//! Attestation: the kernel identifies the caller, and no pod can forge or replace that.

use std::time::Duration;

use kiam_agent::caller::Unidentified;
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, MAX_PER_QUOTA_CGROUP, Verdict};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, pod};
use crate::fixture::{AGENT, METADATA, NODE, Node, descendant};

const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const B: &str = "bbbbbbbb-0000-4000-8000-00000000000b";

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_direct_connection_is_attested() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", &NODE.to_string(), "8181"]);
    assert_eq!(agent.answer(), pod(A));
    // It connected to the agent, and sees the agent as its peer.
    assert_eq!(client.report().peer, Some((NODE.to_string(), AGENT.port())));
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_attestation_is_consumed_once() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", METADATA, "80"]);
    let (stream, peer) = agent.listener.accept();
    let attested = agent.programs.attestor().consume(peer).unwrap();
    assert_eq!(attested.cgroup, a.cgroup().id().unwrap());
    assert_eq!(agent.programs.attestor().consume(peer), None);
    assert_eq!(agent.answer_to(stream, peer), Err(Unidentified::Unattested));
    assert_eq!(client.report().received.as_deref(), Some("unattested"));
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_cgroup_outside_of_pods_identifies_no_pod() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    for name in ["", "other.slice", "other.slice/kubepods-pod_x.slice"] {
        let client = a
            .in_cgroup(descendant(node.pods_cgroup(), name))
            .start(&["tcp", METADATA, "80"]);
        assert_eq!(agent.answer(), Err(Unidentified::NotAPod), "{name}");
        assert_eq!(client.report().received.as_deref(), Some("not_a_pod"));
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn cgroup_names_that_a_pod_gave_are_ignored() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let dashed = B.replace('-', "_");
    for name in [
        "deeper".to_owned(),
        format!("pod{B}"),
        format!("kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/x.scope"),
    ] {
        let client = a
            .in_cgroup(descendant(a.cgroup(), &name))
            .start(&["tcp", METADATA, "80"]);
        assert_eq!(agent.answer(), pod(A), "{name}");
        client.report();
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn connections_from_outside_of_the_pods_cgroup_are_not_attested() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client =
        a.in_cgroup(node.other_cgroup().clone())
            .start(&["tcp", &NODE.to_string(), "8181"]);
    assert_eq!(agent.answer(), Err(Unidentified::Unattested));
    client.report();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_removed_cgroup_is_reported_as_gone() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let short = a.in_cgroup(descendant(a.cgroup(), "short"));
    let cgroup = short.cgroup().path().to_owned();
    let left = short.run(&["leave", METADATA, "80"]);
    assert_eq!(left.error, None);
    drop(short);
    assert!(!cgroup.exists());
    assert_eq!(agent.answer(), Err(Unidentified::Gone));
}

/// A raw socket sends a SYN with the address of its own pod, or of another one.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn forged_packets_are_not_attested() {
    let node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let target = NODE.to_string();
    for source in [a.address(), b.address()] {
        let report = a.run(&["forge", &source.to_string(), "40000", &target, "8181"]);
        assert_eq!(report.error.as_deref(), Some("EPERM"), "{report:?}");
        let peer = (source, 40000).into();
        assert_eq!(agent.programs.attestor().consume(peer), None, "{source}");
    }
    assert_eq!(agent.count(Verdict::Forged), 2);

    // Neither before the connection of the other pod, nor while its attestation is pending.
    let from = format!("from={},40000", b.address());
    let client = b.start(&["tcp", METADATA, "80", &from]);
    let (stream, peer) = agent.listener.accept();
    let report = a.run(&["forge", &b.address().to_string(), "40000", &target, "8181"]);
    assert_eq!(report.error.as_deref(), Some("EPERM"), "{report:?}");
    assert_eq!(agent.answer_to(stream, peer), pod(B));
    client.report();
}

/// A pod that can assign itself the address of another pod connects from it.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_cannot_replace_the_attestation_of_another() {
    let node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    a.ip(&format!("addr add {}/32 dev lo", b.address()));
    let agent = Agent::start(&node);
    let from = format!("from={},41000", b.address());

    // While the attestation of the other pod is pending.
    let client = b.start(&["tcp", METADATA, "80", &from]);
    let (stream, peer) = agent.listener.accept();
    let report = a.run(&["tcp", METADATA, "80", &from, "timeout=0.3"]);
    assert_eq!(report.error.as_deref(), Some("timeout"), "{report:?}");
    assert_eq!(agent.count(Verdict::Contested), 1);
    assert_eq!(agent.answer_to(stream, peer), pod(B));
    client.report();

    // Before the connection of the other pod, which then fails, but is never misattributed.
    let report = a.run(&["tcp", METADATA, "80", &from, "timeout=0.3"]);
    assert_eq!(report.error.as_deref(), Some("timeout"), "{report:?}");
    let client = b.start(&["tcp", METADATA, "80", &from, "timeout=0.5"]);
    assert_eq!(client.report().error.as_deref(), Some("timeout"));
    agent.listener.assert_no_connection();
    // From any other port, the other pod is served as before.
    let client = b.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(B));
    client.report();
}

/// A pod starts more connections than its quota, in its cgroup and in others that it has made.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_cannot_use_up_the_attestations() {
    let node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let (times, share) = (
        (2 * MAX_PER_QUOTA_CGROUP).to_string(),
        u64::from(MAX_PER_QUOTA_CGROUP),
    );
    for cgroup in ["", "deeper", "deeper/and-deeper", "another"] {
        let a = a.in_cgroup(descendant(a.cgroup(), cgroup));
        a.run(&["flood", METADATA, "80", &times]);
    }
    assert!(agent.count(Verdict::Flooding) > 0);
    let attested = agent.count(Verdict::Attested);
    // Ports that are used again may add a few.
    assert!((share..2 * share).contains(&attested), "{attested}");

    let client = b.start(&["tcp", METADATA, "80"]);
    // Connections of the flood that passed are in front.
    while agent.answer() != pod(B) {}
    assert_eq!(client.report().received.as_deref(), Some(B));
}

/// The sweeping task of a running agent.
struct Keeper {
    runtime: tokio::runtime::Runtime,
}

impl Keeper {
    fn new(agent: &Agent) -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        let attestor = agent.programs.attestor();
        runtime.spawn(async move { attestor.run(CancellationToken::new()).await });
        Self { runtime }
    }

    /// Lets it do its pending work.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// An agent that is stopped, or slow to start, accepts a connection long after its handshake.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_connection_that_waits_longer_than_its_attestation_lives_is_attested() {
    let node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let attestor = agent.programs.attestor();
    let keeper = Keeper::new(&agent);
    // As at the start of an agent: no connection waits.
    for _ in 0..3 {
        attestor.accept_queue_empty(Instant::now());
        keeper.settle();
    }
    let before = Instant::now();
    let client = a.start(&["tcp", METADATA, "80", "timeout=30"]);
    std::thread::sleep(Duration::from_nanos(ATTESTATION_LIFE_NANOS + 1_100_000_000));
    // It knows only that no connection waited before that moment.
    attestor.accept_queue_empty(before);
    keeper.settle();
    assert_eq!(agent.answer(), pod(A));
    assert_eq!(client.report().received.as_deref(), Some(A));
    let client = b.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(B));
    client.report();
}

/// Expired attestations of a flood are swept, and its cgroup has its quota again.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn expired_attestations_of_a_flood_are_swept() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let times = (2 * MAX_PER_QUOTA_CGROUP).to_string();
    let keeper = Keeper::new(&agent);
    let sweep = || {
        agent.programs.attestor().accept_queue_empty(Instant::now());
        keeper.settle();
    };
    // Attested connections of a flood. Ports that are used again may add a few.
    let flood = || {
        let before = agent.count(Verdict::Attested);
        a.run(&["flood", METADATA, "80", &times]);
        agent.count(Verdict::Attested) - before
    };
    let share = u64::from(MAX_PER_QUOTA_CGROUP);
    // As at the start of an agent: there is nothing to sweep.
    for _ in 0..2 {
        sweep();
    }
    assert!((share..share + share / 4).contains(&flood()));

    // They are not swept before they expire.
    sweep();
    assert!(flood() < share / 4);

    std::thread::sleep(Duration::from_nanos(ATTESTATION_LIFE_NANOS + 100_000_000));
    sweep();
    assert!((share..share + share / 4).contains(&flood()));
}
