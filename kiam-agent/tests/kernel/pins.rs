//! Pins outlive the agent: without one, pods are refused; the next one takes over; cleanup removes
//! them.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use kiam_agent::kernel::{KernelError, PinsError, Programs, Removed, cleanup, token_key};
use kiam_ebpf::MAX_PER_QUOTA_CGROUP;

use crate::agent::{Agent, pod, redirect};
use crate::client::Report;
use crate::fixture::{AGENT, METADATA, METADATA_V6, Node};

const UID: &str = "aaaaaaaa-0000-4000-8000-00000000000a";

fn metadata() -> SocketAddr {
    format!("{METADATA}:80").parse().unwrap()
}

/// Asserts that each attempt of a client was refused.
#[track_caller]
fn assert_all_refused(report: &Report) {
    assert_eq!(report.error.as_deref(), Some("ECONNREFUSED"), "{report:?}");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn without_an_agent_pods_are_refused() {
    let node = Node::new();
    let a = node.pod(UID);
    let real = node.listen(metadata());
    drop(Agent::start(&node));
    for asked in [METADATA, "::ffff:169.254.169.254", METADATA_V6] {
        let report = a.run(&["tcp", asked, "80"]);
        assert_eq!(report.error.as_deref(), Some("ECONNREFUSED"), "{asked}");
        let count = node.count(&a, || {
            let report = a.run(&["udp", asked, "80"]);
            assert_eq!(report.error.as_deref(), Some("EPERM"), "{asked}");
        });
        assert_eq!(count, 0);
    }
    real.assert_no_connection();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_next_agent_takes_over() {
    let node = Node::new();
    let a = node.pod(UID);
    let first = Agent::start(&node);
    assert_eq!(first.programs.attached().new, 5);
    // The connection to the first agent is still open when the second one has attached.
    let client = a.start(&["tcp", METADATA, "80"]);
    let (stream, peer) = first.listener.accept();
    let second = Programs::attach(&redirect(&node)).unwrap();
    assert_eq!(second.attached().taken_over, 5);
    assert_eq!(second.attached().new, 0);
    assert_eq!(first.answer_to(stream, peer), pod(UID));
    let report = client.report();
    assert_eq!(report.peer, Some((METADATA.to_owned(), 80)));
    // Both read the same attestations, and consume each once.
    let client = a.start(&["tcp", METADATA, "80"]);
    let (mut stream, peer) = first.listener.accept();
    assert!(second.attestor().consume(peer).is_some());
    assert_eq!(first.programs.attestor().consume(peer), None);
    stream.write_all(b"x").unwrap();
    client.report();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn all_agents_of_a_node_share_one_token_key() {
    let (node, other) = (Node::new(), Node::new());
    let key = |node: &Node| token_key(node.bpffs()).unwrap();
    drop((Agent::start(&node), Agent::start(&other)));
    let first = key(&node);
    // The key of later agents, while an earlier one runs and after both.
    let second = Programs::attach(&redirect(&node)).unwrap();
    let third = Programs::attach(&redirect(&node)).unwrap();
    assert_eq!(key(&node), first);
    drop((second, third));
    assert_eq!(key(&node), first);
    // Of all agents that ask at once, one makes the key for all.
    let keys: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| key(&other))).collect();
        asking
            .into_iter()
            .map(|asks| asks.join().unwrap())
            .collect()
    });
    assert!(keys.iter().all(|one| *one == keys[0]));
    // Each node has its own key, and cleanup removes it.
    assert_ne!(keys[0], first);
    cleanup(node.bpffs()).unwrap();
    drop(Programs::attach(&redirect(&node)).unwrap());
    assert_ne!(key(&node), first);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pods_are_guarded_throughout_takeovers() {
    const TIMES: usize = 20;
    let node = Node::new();
    let a = node.pod(UID);
    let real = node.listen(metadata());
    let first = Agent::start(&node);
    drop(first.listener);
    let client = a.start(&["tcp_until_closed", METADATA, "80"]);
    for _ in 0..TIMES {
        let mark = client.mark();
        let next = Programs::attach(&redirect(&node)).unwrap();
        assert_eq!(next.attached().taken_over, 5);
        // The client attempts it all the time, and at least once in each turn.
        client.wait_for_line(mark);
    }
    assert_all_refused(&client.report());
    real.assert_no_connection();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn attempts_without_an_agent_are_forgotten_at_its_start() {
    let node = Node::new();
    let a = node.pod(UID);
    drop(Agent::start(&node));
    // More than the quota of a pod: the connections beyond it are dropped, not refused.
    let times = (MAX_PER_QUOTA_CGROUP + 5).to_string();
    let report = a.run(&["tcp_times", METADATA, "80", &times]);
    assert_eq!(report.error.as_deref(), Some("EAGAIN ECONNREFUSED"));
    let agent = Agent::start(&node);
    let attestor = agent.programs.attestor();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let keeping = attestor.run(CancellationToken::new());
        let accepting = async {
            // As an agent reports when it starts, and a second later.
            attestor.accept_queue_empty(Instant::now());
            tokio::time::sleep(Duration::from_millis(1100)).await;
            attestor.accept_queue_empty(Instant::now());
            tokio::task::yield_now().await;
        };
        tokio::select! {
            () = keeping => unreachable!("it was not stopped"),
            () = accepting => {}
        }
    });
    let client = a.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(UID));
    client.report();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn missing_programs_are_attached_again() {
    let node = Node::new();
    let a = node.pod(UID);
    drop(Agent::start(&node));
    fs::remove_file(node.bpffs().join("kiam/links/connect4")).unwrap();
    let agent = Agent::start(&node);
    assert_eq!(agent.programs.attached().new, 1);
    assert_eq!(agent.programs.attached().taken_over, 4);
    let client = a.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(UID));
    client.report();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_recreated_pods_cgroup_is_attached_to() {
    let node = Node::new();
    drop(Agent::start(&node));
    // As if all cgroups of the kubelet are removed and made again while the node runs.
    let pods = node.pods_cgroup();
    let before = pods.id().unwrap();
    let classes = ["kubepods-burstable.slice", "kubepods-besteffort.slice"];
    let classes = classes.map(|name| pods.path().join(name));
    for cgroup in classes.iter().map(PathBuf::as_path).chain([pods.path()]) {
        fs::remove_dir(cgroup).unwrap();
    }
    for cgroup in classes {
        fs::create_dir_all(cgroup).unwrap();
    }
    assert_ne!(pods.id().unwrap(), before);
    let a = node.pod(UID);
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(UID));
    client.report();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn maps_of_other_versions_are_removed() {
    let node = Node::new();
    drop(Agent::start(&node));
    let maps = node.bpffs().join("kiam/maps");
    let (own, other) = (maps.join("CONFIG-1"), maps.join("CONFIG-4000000000"));
    fs::rename(&own, &other).unwrap();
    let kept = fs::metadata(maps.join("TAKEN-1")).unwrap().ino();
    drop(Agent::start(&node));
    assert!(own.exists());
    assert!(!other.exists());
    // Maps that have not changed are shared.
    assert_eq!(fs::metadata(maps.join("TAKEN-1")).unwrap().ino(), kept);
}

/// An upgrade to a version with other maps: the programs of the old one run on the old maps
/// until each is replaced, and both are at work in between.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pods_are_guarded_while_maps_of_another_version_are_replaced() {
    let node = Node::new();
    let a = node.pod(UID);
    let real = node.listen(metadata());
    let first = Agent::start(&node);
    drop(first.listener);
    let maps = node.bpffs().join("kiam/maps");
    let pinned = || -> Vec<_> {
        let entries = fs::read_dir(&maps).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| entry.path()).collect()
    };
    let client = a.start(&["tcp_until_closed", METADATA, "80"]);
    for number in 0..10 {
        let mark = client.mark();
        let own = pinned();
        let before = fs::metadata(maps.join("CONFIG-1")).unwrap().ino();
        for map in &own {
            let name = map.file_name().unwrap().to_str().unwrap();
            let name = name.trim_end_matches("-1");
            let other = format!("{name}-{}", 4_000_000_000_u32 + number);
            fs::rename(map, maps.join(other)).unwrap();
        }
        let next = Programs::attach(&redirect(&node)).unwrap();
        assert_eq!(next.attached().taken_over, 5);
        assert_ne!(fs::metadata(maps.join("CONFIG-1")).unwrap().ino(), before);
        assert_eq!(pinned().len(), own.len());
        let packets = node.count(&a, || {
            let report = a.run(&["udp", METADATA, "80"]);
            assert_eq!(report.error.as_deref(), Some("EPERM"));
        });
        assert_eq!(packets, 0);
        client.wait_for_line(mark);
    }
    assert_all_refused(&client.report());
    real.assert_no_connection();
    // New connections are identified by the new maps.
    let agent = Agent::start(&node);
    let client = a.start(&["tcp", METADATA, "80"]);
    assert_eq!(agent.answer(), pod(UID));
    client.report();
}

/// A map of another shape would be read and written beyond its bounds.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_map_of_another_shape_is_rejected() {
    let node = Node::new();
    let a = node.pod(UID);
    drop(Agent::start(&node));
    let maps = node.bpffs().join("kiam/maps");
    let own = maps.join("CONFIG-1");
    fs::rename(maps.join("HOST_PODS-1"), &own).unwrap();
    let error = Programs::attach(&redirect(&node)).unwrap_err();
    assert!(
        matches!(&error, KernelError::Pins(PinsError::Foreign { path, .. }) if *path == own),
        "{error}"
    );
    let message = error.to_string();
    assert!(
        message.contains("a map of 1024 entries (key: 8 bytes, value: 4 bytes)")
            && message.contains("CONFIG-1"),
        "{message}"
    );
    // The pod is still guarded.
    let report = a.run(&["tcp", METADATA, "80"]);
    assert_eq!(report.error.as_deref(), Some("ECONNREFUSED"));
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pins_of_other_programs_are_rejected_and_kept() {
    let node = Node::new();
    drop(Agent::start(&node));
    let links = node.bpffs().join("kiam/links");
    fs::rename(links.join("connect6"), links.join("connect4")).unwrap();
    let error = Programs::attach(&redirect(&node)).unwrap_err();
    assert!(
        matches!(&error, KernelError::Pins(PinsError::Foreign { path, .. }) if path.ends_with("links/connect4")),
        "{error}"
    );
    assert!(error.to_string().contains("attach type 11"), "{error}");
    // The existing pins are still there.
    assert!(links.join("guard").exists() && links.join("connect4").exists());

    let map = node.bpffs().join("kiam/maps/CONFIG-1");
    fs::rename(links.join("connect4"), &map).unwrap();
    let error = Programs::attach(&redirect(&node)).unwrap_err();
    assert!(
        matches!(&error, KernelError::Pins(PinsError::Foreign { path, .. }) if *path == map),
        "{error}"
    );
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_path_outside_of_bpf_file_systems_is_rejected() {
    let node = Node::new();
    for (bpffs, named) in [
        ("/tmp", "not in a BPF file system"),
        ("/nowhere", "cannot open"),
    ] {
        let mut redirect = redirect(&node);
        redirect.bpffs = Path::new(bpffs).to_owned();
        let error = Programs::attach(&redirect).unwrap_err().to_string();
        assert!(error.contains(bpffs) && error.contains(named), "{error}");
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn cleanup_removes_all_pins() {
    let node = Node::new();
    let a = node.pod(UID);
    let real = node.listen(metadata());
    assert_eq!(cleanup(node.bpffs()).unwrap(), Removed::default());
    drop(Agent::start(&node));
    assert_eq!(
        cleanup(node.bpffs()).unwrap(),
        Removed { links: 5, maps: 9 }
    );
    assert_eq!(cleanup(node.bpffs()).unwrap(), Removed::default());
    let client = a.start(&["tcp", METADATA, "80"]);
    real.accept().0.write_all(b"the real one").unwrap();
    assert_eq!(client.report().received.as_deref(), Some("the real one"));
    // The address is free again.
    drop(node.listen(AGENT));
}
