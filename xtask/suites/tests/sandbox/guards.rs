//! `--guard`: the agent puts the route guard there, `kiam-agent cleanup` removes it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::sandbox::{NodeOptions, run};
use toolchain::exec;

use crate::play::{Play, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "guards::the_route_guard_outlives_the_agent_until_it_is_cleaned_up",
        Needs::Programs,
        outlives,
    ),
    (
        "guards::a_guard_that_is_not_wanted_is_removed",
        Needs::Programs,
        unwanted,
    ),
    (
        "guards::a_guard_that_does_not_go_with_the_redirection_is_named",
        Needs::Programs,
        named,
    ),
];

const RULE: &str = "not from all iif lo lookup 169254";

fn rules(node: &FileClusterNode) -> Result<String> {
    let netns = node.node().place().netns();
    let mut all = String::new();
    for family in ["-4", "-6"] {
        all += &exec(Command::new("ip").args(["-n", netns.name(), family, "rule"]))?;
    }
    Ok(all)
}

fn outlives() -> Result<()> {
    let Play {
        alice: _alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Play::begin()?;
    let guarded = rules(&node)?;
    ensure!(guarded.matches(RULE).count() == 2, "{guarded}");
    agent.stop()?;
    ensure!(rules(&node)? == guarded, "it stays");

    let place = node.node().service("cleanup")?;
    let mut cleanup = place.command(cluster.programs().folder().join("kiam-agent"));
    cleanup
        .arg("cleanup")
        .arg("--bpffs")
        .arg(node.node().bpffs().path());
    let ended = run("cleanup", cleanup, Duration::from_secs(20))?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    let said = ended.stdout;
    ensure!(said.contains("kiam's routing rules and routes"), "{said}");
    let left = rules(&node)?;
    ensure!(!left.contains("169254"), "{left}");
    ensure!(left.contains("0:\tfrom all lookup local"), "{left}");
    Ok(())
}

fn unwanted() -> Result<()> {
    let Play {
        alice: _alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Play::begin()?;
    agent.stop()?;
    let agent = cluster.start_agent(&node, &["--guard=egress"])?;
    let left = rules(&node)?;
    ensure!(!left.contains("169254"), "{left}");
    let said = agent.program().output();
    ensure!(said.contains("route guard of an earlier agent"), "{said}");
    Ok(())
}

fn named() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let flags = [
        "--redirect=iptables",
        "--host-interface=p+",
        "--guard=egress",
    ];
    let agent = cluster.launch_agent(&node, node.tls(), &flags)?;
    let ended = agent.finish(Duration::from_secs(20))?;
    ensure!(ended.status.code() == Some(64), "{:?}", ended.status);
    let said = ended.stdout + &ended.stderr;
    ensure!(said.contains("--guard=egress does not go"), "{said}");
    let left = rules(&node)?;
    ensure!(!left.contains("169254"), "{left}");
    Ok(())
}
