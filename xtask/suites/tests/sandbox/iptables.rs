//! `--redirect=iptables`: without kernel programs, by the node's firewall and by address.

use std::process::Command;
use std::time::Duration;

use testbed::doubles::imds::NODE_ROLE;
use testbed::fixture::{
    Fixture, ask, assert_denied, assert_denied_eventually, eventually, try_ask,
};
use testbed::probe::Outcome;
use testbed::sandbox::{Netns, PodOptions};
use toolchain::exec;

/// The node's ends of its pods' links.
const PODS: [&str; 2] = ["--redirect=iptables", "--host-interface=p+"];

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_gets_credentials_of_its_own_role() {
    for interface in ["--host-interface=p+", "--host-interface=!eth0"] {
        let fixture = Fixture::start_with(&["--redirect=iptables", interface]);
        for (pod, role) in [(&fixture.alice, "a-reader"), (&fixture.bob, "b-writer")] {
            let answer = ask(pod.place(), "");
            assert!(
                (answer.status, answer.body.as_str()) == (200, role),
                "{answer:?}"
            );
            let peer = answer.peer.map(|peer| peer.to_string());
            assert!(peer.as_deref() == Some("169.254.169.254:80"), "{peer:?}");
        }
        for role in ["b-writer", NODE_ROLE] {
            assert_denied(fixture.alice.place(), role, 403, &["team-a/alice"]);
        }
        fixture.assert_teams_are_served();
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_request_waits_for_the_address_of_its_pod() {
    let fixture = Fixture::start_with(&[&PODS[..], &["--pod-wait=3s"]].concat());
    let carol = fixture.node.node().pod(PodOptions::default()).unwrap();
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(carol.place(), ""));
        std::thread::sleep(Duration::from_millis(700));
        fixture
            .cluster
            .objects()
            .put_pod(&carol, ("team-b", "carol"), Some("c-writer"))
            .unwrap();
        asking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(
        (answer.status, answer.body.as_str()) == (200, "c-writer"),
        "{answer:?}"
    );
    // The address of a deleted pod is forgotten.
    fixture
        .cluster
        .objects()
        .remove_pod(("team-b", "carol"))
        .unwrap();
    assert_denied_eventually(carol.place(), "", 503, &["with the address"]);
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_with_the_address_of_another_gets_no_answer() {
    let fixture = Fixture::start_with(&PODS);
    let (alice, bob) = (fixture.alice.ip(), fixture.bob.place().netns());
    let [Some(alice), Some(own)] = [alice, fixture.bob.ip()] else {
        panic!("both have addresses");
    };
    let router = fixture.node.node().ip();
    ip(bob, &["addr", "add", &format!("{alice}/32"), "dev", "eth0"]);
    let from = |source: &str| {
        let route = format!("route replace default via {router} src {source}");
        ip(bob, &route.split(' ').collect::<Vec<_>>())
    };
    from(&alice.to_string());
    // The answers go to the pod that has the address.
    match try_ask(fixture.bob.place(), "") {
        Outcome::Failure(_) => {}
        Outcome::Answer(answer) => panic!("{answer:?}"),
    }
    from(&own.to_string());
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn flushed_rules_are_restored_and_nothing_leaks() {
    let fixture = Fixture::start_with(&PODS);
    let node = fixture.node.node().place().netns();
    for table in ["nat", "filter"] {
        in_netns(node, &["iptables", "-t", table, "-F"]);
        eventually(|| fixture.role_session(fixture.alice.place()));
        let rules = in_netns(node, &["iptables", "-t", table, "-S"]);
        assert!(rules.contains("KIAM-METADATA"), "{rules}");
        let metrics = fixture.agent_metrics();
        let line = "kiam_iptables_checks_total{family=\"ipv4\",outcome=\"restored\"} ";
        let restored = metrics.lines().find_map(|each| each.strip_prefix(line));
        assert!(restored.is_some_and(|count| count != "0"), "{metrics}");
    }
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn without_an_agent_pods_are_refused_unless_the_rules_are_to_be_removed() {
    let Fixture {
        alice,
        bob: _bob,
        agent,
        server: _server,
        node,
        cluster,
    } = Fixture::start_with(&PODS);
    agent.stop().unwrap();
    let outcome = try_ask(alice.place(), "");
    assert!(matches!(outcome, Outcome::Failure(_)), "{outcome:?}");
    assert!(node.imds().traffic().bytes() == 0, "nothing leaks");

    let flags = [&PODS[..], &["--iptables-remove"]].concat();
    let agent = cluster.start_agent(&node, &flags).unwrap();
    let answer = ask(alice.place(), "");
    assert!(answer.body == "a-reader", "{answer:?}");
    assert!(node.imds().traffic().bytes() == 0, "nothing leaks");
    let ended = agent.stop().unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    // With this flag, pods reach the metadata service of the node. This shows that the test can fail.
    let answer = ask(alice.place(), "");
    assert!(answer.body == NODE_ROLE, "{answer:?}");
}

#[track_caller]
fn ip(netns: &Netns, args: &[&str]) -> String {
    exec(Command::new("ip").args(["-n", netns.name()]).args(args)).unwrap()
}

#[track_caller]
fn in_netns(netns: &Netns, command: &[&str]) -> String {
    let enter = ["netns", "exec", netns.name()];
    exec(Command::new("ip").args(enter).args(command)).unwrap()
}
