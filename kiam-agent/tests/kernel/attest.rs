//! Who is calling, by the kernel's word, and nobody can put other words in its mouth.

use std::time::Duration;

use kiam_agent::caller::Refusal;
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, MAX_PER_SHARE, Verdict};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Test;
use crate::agent::{Agent, pod};
use crate::sandbox::{AGENT, METADATA, NODE, Node};

const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const B: &str = "bbbbbbbb-0000-4000-8000-00000000000b";

pub(crate) const TESTS: &[Test] = &[
    ("attests_a_direct_connection", direct),
    ("takes_a_note_once", once),
    ("finds_no_pod_in_a_cgroup_of_no_pod", no_pod),
    ("reads_no_name_that_a_pod_gave", nested),
    ("attests_nobody_outside_of_the_pods_cgroup", outside),
    ("says_that_a_cgroup_is_gone", gone),
    ("attests_no_forged_packet", forged),
    ("lets_nobody_replace_a_note", contested),
    ("lets_nobody_use_up_the_notes", flooded),
    ("forgets_connections_that_never_came", swept),
    ("knows_a_connection_however_long_it_waits", waits),
];

fn direct() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", &NODE.to_string(), "8181"]);
    assert_eq!(agent.answer(), pod(A));
    // It asked for the agent, and is shown the agent.
    assert_eq!(client.end().peer, Some((NODE.to_string(), AGENT.port())));
}

fn once() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", METADATA, "80"]);
    let (stream, peer) = agent.listener.accept();
    let attested = agent.programs.attestor().take(peer).unwrap();
    assert_eq!(attested.cgroup, a.cgroup_id());
    assert_eq!(agent.programs.attestor().take(peer), None);
    assert_eq!(agent.answer_to(stream, peer), Err(Refusal::Unattested));
    assert_eq!(client.end().heard.as_deref(), Some("unattested"));
}

fn no_pod() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    for name in ["", "other.slice", "other.slice/kubepods-pod_x.slice"] {
        let client = a
            .within(&node.pods_cgroup().join(name))
            .start(&["tcp", METADATA, "80"]);
        assert_eq!(agent.answer(), Err(Refusal::NotAPod), "{name}");
        assert_eq!(client.end().heard.as_deref(), Some("not_a_pod"));
    }
}

fn nested() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let dashed = B.replace('-', "_");
    for name in [
        "deeper".to_owned(),
        format!("pod{B}"),
        format!("kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/x.scope"),
    ] {
        let client = a
            .within(&a.cgroup.join(&name))
            .start(&["tcp", METADATA, "80"]);
        assert_eq!(agent.answer(), pod(A), "{name}");
        client.end();
    }
}

fn outside() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let client = a
        .within(&node.other_cgroup())
        .start(&["tcp", &NODE.to_string(), "8181"]);
    assert_eq!(agent.answer(), Err(Refusal::Unattested));
    client.end();
}

fn gone() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let short = a.within(&a.cgroup.join("short"));
    let left = short.run(&["leave", METADATA, "80"]);
    assert_eq!(left.error, None);
    std::fs::remove_dir(&short.cgroup).unwrap();
    assert_eq!(agent.answer(), Err(Refusal::Gone));
}

/// A raw socket sends a SYN with its own pod's address, or with another's.
fn forged() {
    let mut node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let target = NODE.to_string();
    for source in [a.address, b.address] {
        let report = a.run(&["forge", &source.to_string(), "40000", &target, "8181"]);
        assert_eq!(report.error.as_deref(), Some("EPERM"), "{report:?}");
        let peer = (source, 40000).into();
        assert_eq!(agent.programs.attestor().take(peer), None, "{source}");
    }
    assert_eq!(agent.count(Verdict::Forged), 2);

    // Neither before the other's connection, nor while its note is there.
    let from = format!("from={},40000", b.address);
    let client = b.start(&["tcp", METADATA, "80", &from]);
    let (stream, peer) = agent.listener.accept();
    let report = a.run(&["forge", &b.address.to_string(), "40000", &target, "8181"]);
    assert_eq!(report.error.as_deref(), Some("EPERM"), "{report:?}");
    assert_eq!(agent.answer_to(stream, peer), pod(B));
    client.end();
}

/// A pod that may give itself another's address connects from it.
fn contested() {
    let mut node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    a.ip(&format!("addr add {}/32 dev lo", b.address));
    let agent = Agent::start(&node);
    let from = format!("from={},41000", b.address);

    // While the other's note is there.
    let client = b.start(&["tcp", METADATA, "80", &from]);
    let (stream, peer) = agent.listener.accept();
    let report = a.run(&["tcp", METADATA, "80", &from, "timeout=0.3"]);
    assert_eq!(report.error.as_deref(), Some("timeout"), "{report:?}");
    assert_eq!(agent.count(Verdict::Contested), 1);
    assert_eq!(agent.answer_to(stream, peer), pod(B));
    client.end();

    // Before the other's connection: its note cannot be had, but nor can its connection.
    let report = a.run(&["tcp", METADATA, "80", &from, "timeout=0.3"]);
    assert_eq!(report.error.as_deref(), Some("timeout"), "{report:?}");
    let client = b.start(&["tcp", METADATA, "80", &from, "timeout=0.5"]);
    assert_eq!(client.end().error.as_deref(), Some("timeout"));
    assert!(agent.listener.is_lonely());
    // From any other port the other is served as ever.
    let client = b.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(B));
    client.end();
}

/// A pod begins more connections than it may, in its cgroup and in others that it has made.
fn flooded() {
    let mut node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let (times, share) = ((2 * MAX_PER_SHARE).to_string(), u64::from(MAX_PER_SHARE));
    for cgroup in ["", "deeper", "deeper/and-deeper", "another"] {
        let a = a.within(&a.cgroup.join(cgroup));
        a.run(&["flood", METADATA, "80", &times]);
    }
    assert!(agent.count(Verdict::Flooding) > 0);
    let attested = agent.count(Verdict::Attested);
    // A few more may be where ports come again.
    assert!((share..2 * share).contains(&attested), "{attested}");

    let client = b.start(&["tcp", METADATA, "80"]);
    // What of the flood got through is in front.
    while agent.answer() != pod(B) {}
    assert_eq!(client.end().heard.as_deref(), Some(B));
}

/// An agent that sweeps as one does that runs.
struct Keeper {
    runtime: tokio::runtime::Runtime,
}

impl Keeper {
    fn new(agent: &Agent) -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        let attestor = agent.programs.attestor();
        runtime.spawn(async move { attestor.keep(CancellationToken::new()).await });
        Self { runtime }
    }

    /// Lets it do what there is to do.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// An agent that is stopped, or slow to start, accepts a connection long after it has come about.
fn waits() {
    let mut node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let attestor = agent.programs.attestor();
    let keeper = Keeper::new(&agent);
    // As at its start: nothing has waited until now.
    for _ in 0..3 {
        attestor.none_waits(Instant::now());
        keeper.settle();
    }
    let before = Instant::now();
    let client = a.start(&["tcp", METADATA, "80", "timeout=30"]);
    std::thread::sleep(Duration::from_nanos(ATTESTATION_LIFE_NANOS + 1_100_000_000));
    // All it knows is that none waited before.
    attestor.none_waits(before);
    keeper.settle();
    assert_eq!(agent.answer(), pod(A));
    assert_eq!(client.end().heard.as_deref(), Some(A));
    let client = b.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(B));
    client.end();
}

/// What a flood has left is swept out when it has expired, and its cgroup has its share again.
fn swept() {
    let mut node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let times = (2 * MAX_PER_SHARE).to_string();
    let keeper = Keeper::new(&agent);
    let sweep = || {
        agent.programs.attestor().none_waits(Instant::now());
        keeper.settle();
    };
    // How many of a flood's connections are noted. A few more may be if ports come again.
    let flood = || {
        let before = agent.count(Verdict::Attested);
        a.run(&["flood", METADATA, "80", &times]);
        agent.count(Verdict::Attested) - before
    };
    let share = u64::from(MAX_PER_SHARE);
    // As at its start: there was nothing before.
    for _ in 0..2 {
        sweep();
    }
    assert!((share..share + share / 4).contains(&flood()));

    // They are not swept before.
    sweep();
    assert!(flood() < share / 4);

    std::thread::sleep(Duration::from_nanos(ATTESTATION_LIFE_NANOS + 100_000_000));
    sweep();
    assert!((share..share + share / 4).contains(&flood()));
}
