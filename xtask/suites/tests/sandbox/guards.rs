//! `--guard`: the agent installs the route guard, `kiam-agent cleanup` removes it.

use std::process::Command;
use std::time::Duration;

use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::fixture::{Fixture, programs};
use testbed::sandbox::{NodeOptions, run};
use toolchain::exec;

const RULE: &str = "not from all iif lo lookup 169254";

#[track_caller]
fn rules(node: &FileClusterNode) -> String {
    let netns = node.node().place().netns();
    let mut all = String::new();
    for family in ["-4", "-6"] {
        all += &exec(Command::new("ip").args(["-n", netns.name(), family, "rule"])).unwrap();
    }
    all
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_route_guard_outlives_the_agent_until_cleanup() {
    let Fixture {
        alice: _alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Fixture::start();
    let guarded = rules(&node);
    assert!(guarded.matches(RULE).count() == 2, "{guarded}");
    agent.stop().unwrap();
    assert!(rules(&node) == guarded, "it stays");

    let place = node.node().service("cleanup").unwrap();
    let mut cleanup = place.command(cluster.programs().folder().join("kiam-agent"));
    cleanup
        .arg("cleanup")
        .arg("--bpffs")
        .arg(node.node().bpffs().path());
    let ended = run("cleanup", cleanup, Duration::from_secs(20)).unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    let output = ended.stdout;
    assert!(
        output.contains("routing rules and routes of kiam"),
        "{output}"
    );
    let left = rules(&node);
    assert!(!left.contains("169254"), "{left}");
    assert!(left.contains("0:\tfrom all lookup local"), "{left}");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_without_the_route_guard_removes_that_of_an_earlier_one() {
    let Fixture {
        alice: _alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Fixture::start();
    agent.stop().unwrap();
    let agent = cluster.start_agent(&node, &["--guard=egress"]).unwrap();
    let left = rules(&node);
    assert!(!left.contains("169254"), "{left}");
    let output = agent.program().output();
    assert!(
        output.contains("route guard of an earlier agent"),
        "{output}"
    );
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_guard_that_the_redirection_does_not_support_is_a_configuration_error() {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    let flags = [
        "--redirect=iptables",
        "--host-interface=p+",
        "--guard=egress",
    ];
    let agent = cluster.launch_agent(&node, node.tls(), &flags).unwrap();
    let ended = agent.finish(Duration::from_secs(20)).unwrap();
    assert!(ended.status.code() == Some(64), "{:?}", ended.status);
    let output = ended.stdout + &ended.stderr;
    assert!(output.contains("--guard=egress does not work"), "{output}");
    let left = rules(&node);
    assert!(!left.contains("169254"), "{left}");
}
