//! Redirection by the node's firewall, in both variants of iptables.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use kiam_agent::iptables::{self, CHAIN, Firewall, FirewallMetrics, Rules, Variant};
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use testbed::sandbox::patient;
use tokio::time::Instant;

use crate::Test;
use crate::sandbox::{AGENT, Listener, METADATA, METADATA_V6, NODE, Node, beside, patience};

const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const KIAM: &str = "PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination 10.99.0.7:8181 -i br0";
const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];

/// Where containers' SDKs ask.
const CONTAINER: &str = "169.254.170.2";

pub(crate) const TESTS: &[Test] = &[
    ("iptables_brings_pods_to_the_agent", redirects),
    ("iptables_brings_ipv6_to_an_ipv6_agent", redirects_ipv6),
    ("iptables_refuses_other_ways", refuses),
    ("iptables_replaces_what_earlier_runs_left", replaces),
    ("iptables_rules_that_are_flushed_come_back", heals),
    ("iptables_leaves_the_node_itself_alone", node_itself),
];

/// In a node's namespace: makes the kubelet's mark in one variant, which is the node's then.
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
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
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

/// Does something asynchronous in a node's network namespace.
fn within<T: Send>(node: &Node, what: impl AsyncFnOnce() -> T + Send) -> T {
    node.run(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(what())
    })
}

fn install(node: &Node, rules: Rules) {
    let metrics = FirewallMetrics::new().unwrap();
    within(node, async || {
        Firewall::install(rules, metrics).await.unwrap()
    });
}

fn redirects() {
    for variant in VARIANTS {
        let mut node = Node::new();
        let a = node.pod(A);
        mark(&node, variant);
        let rules = Rules {
            container: Some(CONTAINER.parse().unwrap()),
            ..rules("br0", AGENT)
        };
        install(&node, rules);
        assert!(saved(&node, variant).contains(CHAIN));
        let agent = node.listen(AGENT);
        for asked in [METADATA, CONTAINER] {
            let client = a.start(&["tcp", asked, "80"]);
            let (mut stream, peer) = agent.accept();
            stream.write_all(b"hello").unwrap();
            assert_eq!(peer.ip(), a.address);
            let report = client.end();
            assert_eq!(report.heard.as_deref(), Some("hello"), "{report:?}");
            // To the pod it is the service that it asked for.
            assert_eq!(report.peer, Some((asked.to_owned(), 80)));
        }
    }
}

fn redirects_ipv6() {
    for variant in VARIANTS {
        let mut node = Node::new();
        let a = node.pod(A);
        mark(&node, variant);
        let address: SocketAddr = "[fd99::1]:8181".parse().unwrap();
        install(&node, rules("br0", address));
        let agent = node.listen(address);
        let client = a.start(&["tcp", METADATA_V6, "80"]);
        let (mut stream, peer) = agent.accept();
        stream.write_all(b"hello").unwrap();
        assert_eq!(peer.ip().to_string(), "fd99::2");
        assert_eq!(client.end().heard.as_deref(), Some("hello"));
        // The other family cannot be brought there, and is kept from the real service.
        let report = a.run(&["tcp", METADATA, "80"]);
        assert_eq!(report.error.as_deref(), Some("ECONNREFUSED"));
    }
}

fn refuses() {
    for variant in VARIANTS {
        let mut node = Node::new();
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
                // Without the rules it comes through: the test can fail.
                let real = &real[usize::from(to == METADATA_V6)];
                real.accept().0.write_all(b"the real one").unwrap();
                assert_eq!(before.end().heard.as_deref(), Some("the real one"));
            } else {
                before.end();
            }
        }
        install(&node, rules("br0", AGENT));
        for attempt in attempts {
            let report = a.run(&attempt);
            let error = report.error.as_deref();
            assert_eq!(
                error,
                Some("ECONNREFUSED"),
                "{variant:?} {attempt:?}: {report:?}"
            );
        }
        assert!(real.iter().all(Listener::is_lonely));
    }
}

fn replaces() {
    for variant in VARIANTS {
        let node = Node::new();
        mark(&node, variant);
        for variant in VARIANTS {
            let iptables = variant.as_label();
            tool(
                &node,
                &format!("{iptables} -t nat -A PREROUTING -i br0 -j ACCEPT"),
            );
            for _ in 0..2 {
                tool(&node, &format!("{iptables} -t nat -A {KIAM}"));
            }
        }
        let other = VARIANTS.into_iter().find(|one| *one != variant).unwrap();
        install(&node, rules("br0", AGENT));
        let first = saved(&node, variant);
        assert!(!first.contains("10.99.0.7"), "{first}");
        assert_eq!(first.matches("10.99.0.1:8181").count(), 1, "{first}");
        assert_eq!(first.matches(&format!("-j {CHAIN}")).count(), 5, "{first}");
        assert!(first.contains("-A PREROUTING -i br0 -j ACCEPT"), "{first}");
        assert_eq!(saved(&node, other), "-A PREROUTING -i br0 -j ACCEPT\n");

        // The same once more changes nothing; another interface and port replace it.
        install(&node, rules("br0", AGENT));
        assert_eq!(saved(&node, variant), first);
        install(&node, rules("!eth+", SocketAddr::from((NODE, 8282))));
        let second = saved(&node, variant);
        assert_eq!(
            second.matches(&format!("! -i eth+ -j {CHAIN}")).count(),
            5,
            "{second}"
        );
        assert_eq!(
            second.matches(&format!("-i br0 -j {CHAIN}")).count(),
            0,
            "{second}"
        );
        assert_eq!(second.matches("10.99.0.1:8282").count(), 1, "{second}");

        let swept = within(&node, async || iptables::cleanup().await.unwrap());
        assert_eq!(swept, 3);
        for variant in VARIANTS {
            let left = saved(&node, variant);
            assert_eq!(left, "-A PREROUTING -i br0 -j ACCEPT\n");
        }
        let again = within(&node, async || iptables::cleanup().await.unwrap());
        assert_eq!(again, 0);
    }
}

fn heals() {
    // With nftables the kernel wakes the agent; else it looks every 10 s.
    let intruder = format!("-t nat -I {KIAM}");
    let all = ["-t nat -F", "-t filter -F", &intruder];
    for (variant, limit, flushes) in [
        (Variant::Nft, 2, &all[..]),
        (Variant::Legacy, 14, &all[..1]),
    ] {
        let node = Node::new();
        mark(&node, variant);
        let metrics = FirewallMetrics::new().unwrap();
        let (installed, installing) = std::sync::mpsc::channel();
        let keep = |stopped| {
            within(&node, async || {
                let firewall = Firewall::install(rules("br0", AGENT), metrics.clone())
                    .await
                    .unwrap();
                installed.send(()).unwrap();
                firewall.keep(stopped, true).await;
            });
        };
        beside(keep, || {
            installing.recv_timeout(patience()).unwrap();
            let whole = saved(&node, variant);
            for flush in flushes {
                let before = restored(&metrics);
                tool(&node, &format!("{} {flush}", variant.as_label()));
                // Whether they were gone is told by the count: they may be back before one can look.
                let begun = Instant::now();
                while restored(&metrics) <= before || saved(&node, variant) != whole {
                    let late = begun.elapsed() > patient(Duration::from_secs(limit));
                    assert!(!late, "{flush}: {}", saved(&node, variant));
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let restored = restored(&metrics);
        assert!(restored >= flushes.len() as f64, "{restored}");
        // Told to remove them, it has.
        assert_eq!(saved(&node, variant), "");
    }
}

fn restored(metrics: &FirewallMetrics) -> f64 {
    let families = metrics.collector().collect();
    let counters = families.iter().flat_map(MetricFamily::get_metric);
    let restored = counters.filter(|counter| {
        let mut labels = counter.get_label().iter();
        labels.any(|label| label.value() == "restored")
    });
    restored
        .map(|counter| counter.get_counter().get_value())
        .sum()
}

fn node_itself() {
    let mut node = Node::new();
    let host = node.host_network_pod(A);
    mark(&node, Variant::Nft);
    install(&node, rules("!eth0", AGENT));
    let real = node.listen(format!("{METADATA}:80").parse::<SocketAddr>().unwrap());
    let client = host.start(&["tcp", METADATA, "80"]);
    real.accept().0.write_all(b"the real one").unwrap();
    assert_eq!(client.end().heard.as_deref(), Some("the real one"));
}
