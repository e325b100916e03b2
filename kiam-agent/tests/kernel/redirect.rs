//! Connections to the metadata service are redirected to the agent, which the pod does not see.

use std::io::Write as _;
use std::net::SocketAddr;

use kiam_agent::kernel::{KernelLog, Programs, Redirect};
use kiam_ebpf::{Hook, Verdict};

use crate::agent::{Agent, pod, redirect};
use crate::fixture::{METADATA, METADATA_V6, NODE, Node};

const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const B: &str = "bbbbbbbb-0000-4000-8000-00000000000b";

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_address_family_is_redirected_and_attested() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    for (asked, shown) in [
        (METADATA, METADATA),
        ("::ffff:169.254.169.254", "::ffff:169.254.169.254"),
        (METADATA_V6, METADATA_V6),
    ] {
        let client = a.start(&["tcp", asked, "80"]);
        assert_eq!(agent.answer(), pod(A), "{asked}");
        let report = client.report();
        assert_eq!(report.received.as_deref(), Some(A), "{asked}: {report:?}");
        assert_eq!(report.peer, Some((shown.to_owned(), 80)), "{asked}");
    }
    assert_eq!(agent.count(Verdict::Redirected), 3);
    assert_eq!(agent.count(Verdict::Attested), 3);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_container_credentials_address_is_redirected_where_configured() {
    let container = "169.254.170.2".parse().unwrap();
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start_with(
        &node,
        &Redirect {
            container: Some(container),
            ..redirect(&node)
        },
    );
    for asked in [
        "169.254.170.2",
        "::ffff:169.254.170.2",
        METADATA,
        "::ffff:169.254.169.254",
    ] {
        let client = a.start(&["tcp", asked, "80"]);
        assert_eq!(agent.answer(), pod(A), "{asked}");
        let report = client.report();
        assert_eq!(report.received.as_deref(), Some(A), "{asked}: {report:?}");
        assert_eq!(report.peer, Some((asked.to_owned(), 80)), "{asked}");
    }
    let report = a.run(&["tcp", "169.254.170.2", "81", "timeout=0.2"]);
    assert_eq!(report.error.as_deref(), Some("EPERM"));

    // An agent that is started without it does not redirect it.
    drop(agent);
    let agent = Agent::start(&node);
    let report = a.run(&["tcp", "169.254.170.2", "80", "timeout=0.2"]);
    assert_eq!(report.received, None, "{report:?}");
    assert_eq!(agent.count(Verdict::Redirected), 4);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn decisions_are_logged_at_the_configured_level() {
    let node = Node::new();
    let a = node.pod(A);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    for (log, listens) in [
        (KernelLog::All, true),
        (KernelLog::Refused, true),
        (KernelLog::Off, false),
    ] {
        let agent = Agent::start_with(
            &node,
            &Redirect {
                log,
                ..redirect(&node)
            },
        );
        // The programs load, attach and work at every level.
        let events = agent.programs.take_events();
        assert_eq!(events.is_some(), listens, "{log:?}");
        let report = a.run(&["tcp", METADATA, "443", "timeout=0.2"]);
        assert_eq!(report.error.as_deref(), Some("EPERM"), "{log:?}");
        let client = a.start(&["tcp", METADATA, "80"]);
        assert_eq!(agent.answer(), pod(A), "{log:?}");
        assert_eq!(client.report().received.as_deref(), Some(A), "{log:?}");
        if let Some(mut events) = events {
            let cgroup = a.cgroup().id().unwrap();
            let refused = (Hook::Connect4, Verdict::ConnectRefused, cgroup);
            let expected = match log {
                KernelLog::All => vec![
                    refused,
                    (Hook::Connect4, Verdict::Redirected, cgroup),
                    (Hook::Egress, Verdict::Attested, cgroup),
                ],
                KernelLog::Refused | KernelLog::Off => vec![refused],
            };
            assert_eq!(runtime.block_on(events.next()).unwrap(), expected);
        }
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn mptcp_and_fast_open_are_redirected() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    for option in ["mptcp", "fastopen"] {
        for asked in [METADATA, "::ffff:169.254.169.254"] {
            let client = a.start(&["tcp", asked, "80", option]);
            assert_eq!(agent.answer(), pod(A), "{option} {asked}");
            let report = client.report();
            assert_eq!(report.received.as_deref(), Some(A), "{option}: {report:?}");
        }
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn concurrent_pods_are_told_apart() {
    let node = Node::new();
    let (a, b) = (node.pod(A), node.pod(B));
    let agent = Agent::start(&node);
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let pod = if number % 2 == 0 { &a } else { &b };
            (pod.uid(), pod.start(&["tcp", METADATA, "80"]))
        })
        .collect();
    for _ in &clients {
        agent.answer().unwrap();
    }
    for (uid, client) in clients {
        assert_eq!(client.report().received.as_deref(), Some(uid));
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn without_a_configuration_connections_are_refused() {
    let node = Node::new();
    let a = node.pod(A);
    let real = node.listen(format!("{METADATA}:80").parse::<SocketAddr>().unwrap());
    let programs = Programs::attach_unconfigured(node.pods_cgroup().path(), node.bpffs()).unwrap();
    for asked in [METADATA, "::ffff:169.254.169.254", METADATA_V6] {
        let report = a.run(&["tcp", asked, "80"]);
        assert_eq!(report.error.as_deref(), Some("EPERM"), "{asked}");
    }
    real.assert_no_connection();
    drop(programs);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn host_network_connections_pass_through() {
    let node = Node::new();
    let host = node.host_network_pod(A);
    let agent = Agent::start(&node);
    for (asked, address) in [
        (METADATA, METADATA.to_owned()),
        (METADATA_V6, format!("[{METADATA_V6}]")),
    ] {
        let real = node.listen(format!("{address}:80").parse::<SocketAddr>().unwrap());
        let client = host.start(&["tcp", asked, "80"]);
        let (mut stream, _) = real.accept();
        stream.write_all(b"the real one").unwrap();
        let report = client.report();
        assert_eq!(
            report.received.as_deref(),
            Some("the real one"),
            "{report:?}"
        );
        assert_eq!(report.peer, Some((asked.to_owned(), 80)));
    }
    agent.listener.assert_no_connection();
    assert_eq!(agent.count(Verdict::HostNetwork), 2);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn connections_to_other_addresses_are_untouched() {
    let node = Node::new();
    let a = node.pod(A);
    let agent = Agent::start(&node);
    let other = node.listen(SocketAddr::from((NODE, 80)));
    let client = a.start(&["tcp", &NODE.to_string(), "80"]);
    other.accept().0.write_all(b"other").unwrap();
    let report = client.report();
    assert_eq!(report.received.as_deref(), Some("other"), "{report:?}");
    assert_eq!(report.peer, Some((NODE.to_string(), 80)));
    assert_eq!(a.run(&["udp", &NODE.to_string(), "53"]).error, None);
    for (verdict, count) in agent.programs.verdicts().unwrap() {
        assert_eq!(count, 0, "{verdict:?}");
    }
}
