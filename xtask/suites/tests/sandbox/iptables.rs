//! `--redirect=iptables`: without kernel programs, by the node's firewall and by address.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::doubles::imds::NODE_ROLE;
use testbed::probe::Outcome;
use testbed::sandbox::{Netns, PodOptions};
use toolchain::exec;

use crate::play::{Play, ask, eventually, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "iptables::a_pod_gets_its_own_role_s_only",
        Needs::Programs,
        own_role,
    ),
    (
        "iptables::an_address_that_comes_late_is_waited_for",
        Needs::Programs,
        late_address,
    ),
    (
        "iptables::another_pod_s_address_gets_nothing",
        Needs::Programs,
        spoofed,
    ),
    (
        "iptables::rules_that_are_flushed_come_back_and_nothing_leaks",
        Needs::Programs,
        flushed,
    ),
    (
        "iptables::without_an_agent_pods_are_refused_unless_told_otherwise",
        Needs::Programs,
        stopped,
    ),
];

/// The node's ends of its pods' links.
const PODS: [&str; 2] = ["--redirect=iptables", "--host-interface=p+"];

fn own_role() -> Result<()> {
    for interface in ["--host-interface=p+", "--host-interface=!eth0"] {
        let play = Play::begin_with(&["--redirect=iptables", interface])?;
        for (pod, role) in [(&play.alice, "a-reader"), (&play.bob, "b-writer")] {
            let answer = ask(pod.place(), "")?.answer()?;
            ensure!(
                (answer.status, answer.body.as_str()) == (200, role),
                "{answer:?}"
            );
            let peer = answer.peer.map(|peer| peer.to_string());
            ensure!(peer.as_deref() == Some("169.254.169.254:80"), "{peer:?}");
        }
        for role in ["b-writer", NODE_ROLE] {
            refused(play.alice.place(), role, 403, &["team-a/alice"])?;
        }
        play.others_are_unaffected()?;
    }
    Ok(())
}

fn late_address() -> Result<()> {
    let play = Play::begin_with(&[&PODS[..], &["--pod-wait=3s"]].concat())?;
    let carol = play.node.node().pod(PodOptions::default())?;
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(carol.place(), ""));
        std::thread::sleep(Duration::from_millis(700));
        play.cluster
            .objects()
            .put_pod(&carol, ("team-b", "carol"), Some("c-writer"))?;
        asking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?
    .answer()?;
    ensure!(
        (answer.status, answer.body.as_str()) == (200, "c-writer"),
        "{answer:?}"
    );
    // A pod that is gone has no address any more.
    play.cluster.objects().remove_pod(("team-b", "carol"))?;
    eventually(|| refused(carol.place(), "", 503, &["with the address"]))?;
    play.others_are_unaffected()
}

fn spoofed() -> Result<()> {
    let play = Play::begin_with(&PODS)?;
    let (alice, bob) = (play.alice.ip(), play.bob.place().netns());
    let [Some(alice), Some(own)] = [alice, play.bob.ip()] else {
        anyhow::bail!("both have addresses");
    };
    let router = play.node.node().ip();
    ip(bob, &["addr", "add", &format!("{alice}/32"), "dev", "eth0"])?;
    let from = |source: &str| {
        let route = format!("route replace default via {router} src {source}");
        ip(bob, &route.split(' ').collect::<Vec<_>>())
    };
    from(&alice.to_string())?;
    // The answers go to whom the address is.
    match ask(play.bob.place(), "")? {
        Outcome::Failure(_) => {}
        Outcome::Answer(answer) => anyhow::bail!("{answer:?}"),
    }
    from(&own.to_string())?;
    play.others_are_unaffected()
}

fn flushed() -> Result<()> {
    let play = Play::begin_with(&PODS)?;
    let node = play.node.node().place().netns();
    for table in ["nat", "filter"] {
        in_netns(node, &["iptables", "-t", table, "-F"])?;
        eventually(|| play.identity(play.alice.place()))?;
        let rules = in_netns(node, &["iptables", "-t", table, "-S"])?;
        ensure!(rules.contains("KIAM-METADATA"), "{rules}");
        let metrics = play.agent.admin("/metrics")?.body;
        let line = "kiam_iptables_checks_total{family=\"ipv4\",outcome=\"restored\"} ";
        let restored = metrics.lines().find_map(|each| each.strip_prefix(line));
        ensure!(restored.is_some_and(|count| count != "0"), "{metrics}");
    }
    play.others_are_unaffected()
}

fn stopped() -> Result<()> {
    let Play {
        alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Play::begin_with(&PODS)?;
    agent.stop()?;
    let outcome = ask(alice.place(), "")?;
    ensure!(matches!(outcome, Outcome::Failure(_)), "{outcome:?}");
    ensure!(node.imds().traffic().bytes() == 0, "nothing leaks");

    let flags = [&PODS[..], &["--iptables-remove"]].concat();
    let agent = cluster.start_agent(&node, &flags)?;
    let answer = ask(alice.place(), "")?.answer()?;
    ensure!(answer.body == "a-reader", "{answer:?}");
    ensure!(node.imds().traffic().bytes() == 0, "nothing leaks");
    let ended = agent.stop()?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    // What the flag says: back to the node's own service, by which the test sees that it could.
    let answer = ask(alice.place(), "")?.answer()?;
    ensure!(answer.body == NODE_ROLE, "{answer:?}");
    Ok(())
}

fn ip(netns: &Netns, args: &[&str]) -> Result<String> {
    exec(Command::new("ip").args(["-n", netns.name()]).args(args))
}

fn in_netns(netns: &Netns, command: &[&str]) -> Result<String> {
    let enter = ["netns", "exec", netns.name()];
    exec(Command::new("ip").args(enter).args(command))
}
