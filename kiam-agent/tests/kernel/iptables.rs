//! Redirection by the node's firewall, in both variants of iptables.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;

use kiam_agent::iptables::{self, CHAIN, Firewall, FirewallMetrics, Rules, Variant};
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;

use crate::fixture::{AGENT, AGENT_V6, METADATA, METADATA_V6, NODE, Node, beside};
use crate::frozen_clock::{Cause, frozen_clock};
use crate::hang_limit::hang_limit;
use crate::listener::Listener;

const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const KIAM: &str =
    "PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination 10.0.1.7:8181 -i p+";
const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];

/// The node's ends of its pods' links.
const PODS: &str = "p+";

/// Tables that one check reads: nat and filter, of both families.
const TABLES: u64 = 4;

/// The container credentials address of AWS's SDKs.
const CONTAINER: &str = "169.254.170.2";

/// Makes the kubelet's mark in the tables of a variant, which makes it the variant of the node.
fn mark(node: &Node, variant: Variant) {
    let iptables = variant.as_label();
    tool(node, &format!("{iptables} -t mangle -N KUBE-IPTABLES-HINT"));
}

fn tool(node: &Node, command: &str) -> String {
    let output = node.run(|| {
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap());
        process.args(words).output().unwrap()
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules of both families in a variant's tables.
fn saved(node: &Node, variant: Variant) -> String {
    let v4 = variant.as_label();
    let v6 = v4.replace("iptables", "ip6tables");
    let all = tool(node, &format!("{v4}-save")) + &tool(node, &format!("{v6}-save"));
    let rules = all.lines().filter(|line| line.starts_with("-A "));
    rules.map(|line| format!("{line}\n")).collect()
}

fn rules(interface: &str, agent: impl Into<SocketAddr>) -> Rules {
    let interface = interface.parse().unwrap();
    let agent = agent.into();
    let container = None;
    Rules {
        interface,
        agent,
        container,
    }
}

fn install(node: &Node, rules: Rules) {
    let metrics = FirewallMetrics::new().unwrap();
    node.block_on(async || Firewall::install(rules, metrics).await.unwrap());
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pods_are_redirected_to_the_agent() {
    for variant in VARIANTS {
        let node = Node::new();
        let a = node.pod(A);
        mark(&node, variant);
        let rules = Rules {
            container: Some(CONTAINER.parse().unwrap()),
            ..rules(PODS, AGENT)
        };
        install(&node, rules);
        assert!(saved(&node, variant).contains(CHAIN));
        let agent = node.listen(AGENT);
        for asked in [METADATA, CONTAINER] {
            let client = a.start(&["tcp", asked, "80"]);
            let (mut stream, peer) = agent.accept();
            stream.write_all(b"hello").unwrap();
            assert_eq!(peer.ip(), a.address());
            let report = client.report();
            assert_eq!(report.received.as_deref(), Some("hello"), "{report:?}");
            // The pod sees the service that it asked for as its peer.
            assert_eq!(report.peer, Some((asked.to_owned(), 80)));
        }
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn ipv6_pods_are_redirected_to_an_ipv6_agent() {
    for variant in VARIANTS {
        let node = Node::new();
        let a = node.pod(A);
        mark(&node, variant);
        let address: SocketAddr = AGENT_V6.parse().unwrap();
        install(&node, rules(PODS, address));
        let agent = node.listen(address);
        let client = a.start(&["tcp", METADATA_V6, "80"]);
        let (mut stream, peer) = agent.accept();
        stream.write_all(b"hello").unwrap();
        assert_eq!(peer.ip().to_string(), "fd00:10:1::1");
        assert_eq!(client.report().received.as_deref(), Some("hello"));
        // The other family cannot be redirected there, and does not reach the real service.
        let report = a.run(&["tcp", METADATA, "80"]);
        assert_eq!(report.error.as_deref(), Some("ECONNREFUSED"));
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn other_ports_and_protocols_are_refused() {
    for variant in VARIANTS {
        let node = Node::new();
        let a = node.pod(A);
        mark(&node, variant);
        let real = [
            node.listen(format!("{METADATA}:443").parse::<SocketAddr>().unwrap()),
            node.listen(format!("[{METADATA_V6}]:80").parse::<SocketAddr>().unwrap()),
        ];
        let attempts = [
            ["tcp", METADATA, "443"],
            ["tcp", METADATA_V6, "80"],
            ["udp_refused", METADATA, "80"],
            ["udp_refused", METADATA_V6, "80"],
        ];
        for [how, to, port] in attempts {
            let before = a.start(&[how, to, port]);
            if how == "tcp" {
                // Without the rules it reaches the service: the test can fail.
                let real = &real[usize::from(to == METADATA_V6)];
                real.accept().0.write_all(b"the real one").unwrap();
                assert_eq!(before.report().received.as_deref(), Some("the real one"));
            } else {
                before.report();
            }
        }
        install(&node, rules(PODS, AGENT));
        for attempt in attempts {
            let report = a.run(&attempt);
            let error = report.error.as_deref();
            assert_eq!(
                error,
                Some("ECONNREFUSED"),
                "{variant:?} {attempt:?}: {report:?}"
            );
        }
        real.iter().for_each(Listener::assert_no_connection);
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn rules_of_earlier_runs_are_replaced() {
    for variant in VARIANTS {
        let node = Node::new();
        mark(&node, variant);
        for variant in VARIANTS {
            let iptables = variant.as_label();
            tool(
                &node,
                &format!("{iptables} -t nat -A PREROUTING -i p+ -j ACCEPT"),
            );
            for _ in 0..2 {
                tool(&node, &format!("{iptables} -t nat -A {KIAM}"));
            }
        }
        let other = VARIANTS.into_iter().find(|one| *one != variant).unwrap();
        install(&node, rules(PODS, AGENT));
        let first = saved(&node, variant);
        assert!(!first.contains("10.0.1.7"), "{first}");
        assert_eq!(first.matches("10.0.1.1:8181").count(), 1, "{first}");
        assert_eq!(first.matches(&format!("-j {CHAIN}")).count(), 5, "{first}");
        assert!(first.contains("-A PREROUTING -i p+ -j ACCEPT"), "{first}");
        assert_eq!(saved(&node, other), "-A PREROUTING -i p+ -j ACCEPT\n");

        // A second installation changes nothing; another interface and port replace the rules.
        install(&node, rules(PODS, AGENT));
        assert_eq!(saved(&node, variant), first);
        install(&node, rules("!eth+", SocketAddr::from((NODE, 8282))));
        let second = saved(&node, variant);
        assert_eq!(
            second.matches(&format!("! -i eth+ -j {CHAIN}")).count(),
            5,
            "{second}"
        );
        assert_eq!(
            second.matches(&format!("-i {PODS} -j {CHAIN}")).count(),
            0,
            "{second}"
        );
        assert_eq!(second.matches("10.0.1.1:8282").count(), 1, "{second}");

        let swept = node.block_on(async || iptables::cleanup().await.unwrap());
        assert_eq!(swept, 3);
        for variant in VARIANTS {
            let left = saved(&node, variant);
            assert_eq!(left, "-A PREROUTING -i p+ -j ACCEPT\n");
        }
        let again = node.block_on(async || iptables::cleanup().await.unwrap());
        assert_eq!(again, 0);
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn flushed_nft_rules_are_restored_when_the_kernel_reports_it() {
    let intruder = format!("-t nat -I {KIAM}");
    let changes = ["-t nat -F", "-t filter -F", &intruder];
    rules_are_restored(Variant::Nft, &changes, Cause::Report);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn flushed_legacy_rules_are_restored_after_a_period() {
    rules_are_restored(Variant::Legacy, &["-t nat -F"], Cause::Period);
}

#[track_caller]
fn rules_are_restored(variant: Variant, changes: &[&str], cause: Cause) {
    let node = Node::new();
    mark(&node, variant);
    let metrics = FirewallMetrics::new().unwrap();
    let restored = || count(&metrics, |outcome| outcome == "restored");
    let checks = || count(&metrics, |_| true) / TABLES;
    let (clock, runtime) = frozen_clock();
    let (installed, installing) = std::sync::mpsc::channel();
    let keep = |stopped| {
        node.run(|| {
            runtime.block_on(async {
                let firewall = Firewall::install(rules(PODS, AGENT), metrics.clone());
                let firewall = firewall.await.unwrap();
                installed.send(()).unwrap();
                firewall.run(stopped, true).await;
            });
        });
    };
    beside(keep, || {
        installing.recv_timeout(hang_limit()).unwrap();
        let whole = saved(&node, variant);
        for change in changes {
            let before = restored();
            tool(&node, &format!("{} {change}", variant.as_label()));
            clock.wait_for(cause, checks, || {
                restored() > before && saved(&node, variant) == whole
            });
        }
    });
    // The loop removes them when it is stopped.
    assert_eq!(saved(&node, variant), "");
}

/// Number of tables that were checked with such an outcome.
fn count(metrics: &FirewallMetrics, is_counted: impl Fn(&str) -> bool) -> u64 {
    let families = metrics.collector().collect();
    let counters = families.iter().flat_map(MetricFamily::get_metric);
    let counted = counters.filter(|counter| {
        let mut labels = counter.get_label().iter();
        labels.any(|label| label.name() == "outcome" && is_counted(label.value()))
    });
    counted
        .map(|counter| counter.get_counter().get_value() as u64)
        .sum()
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn connections_of_the_node_are_untouched() {
    let node = Node::new();
    let host = node.host_network_pod(A);
    mark(&node, Variant::Nft);
    install(&node, rules("!eth0", AGENT));
    let real = node.listen(format!("{METADATA}:80").parse::<SocketAddr>().unwrap());
    let client = host.start(&["tcp", METADATA, "80"]);
    real.accept().0.write_all(b"the real one").unwrap();
    assert_eq!(client.report().received.as_deref(), Some("the real one"));
}
