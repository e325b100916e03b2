//! Packets past the kernel programs: that they are counted, and no others.

use kiam_agent::bypass_counter::{self, BypassCounter, BypassMetric};
use kiam_agent::route_guard;
use prometheus::core::Collector as _;

use crate::Test;
use crate::route_guard::{A, Service, attack, install as install_route_guard, send};
use crate::sandbox::{METADATA, METADATA_V6, Node};

pub(crate) const TESTS: &[Test] = &[
    ("bypass_counter_counts_frames_and_nothing_else", counts),
    ("bypass_counter_that_is_removed_comes_back", comes_back),
];

/// What an agent that starts now has counted.
fn packets(node: &Node) -> u64 {
    node.run(|| {
        BypassCounter::install()
            .unwrap()
            .packets()
            .unwrap()
            .unwrap()
    })
}

fn counts() {
    let mut node = Node::new();
    let pod = node.pod(A);
    let away = node.move_metadata_away();
    let service = Service::start(&away);
    assert!(!node.run(|| bypass_counter::cleanup().unwrap()));
    assert_eq!(packets(&node), 0);

    service.is_found(&node);
    // A frame and a datagram for either family, all of which get there.
    attack(&pod);
    assert_eq!(service.heard(&pod.netns, "10.99.0.3").len(), 4);
    assert_eq!(packets(&node), 4);
    // What is sent elsewhere, and what the node sends, is nothing to it.
    for to in [METADATA, METADATA_V6] {
        send(&node.netns(), to, b"node");
    }
    assert_eq!(service.heard(&pod.netns, "10.99.0.3").len(), 2);
    assert_eq!(packets(&node), 4);

    // Seen whether they are refused afterwards or not.
    install_route_guard(&node);
    attack(&pod);
    assert_eq!(service.heard(&pod.netns, "10.99.0.3"), [""; 0]);
    assert_eq!(packets(&node), 8);
    assert!(node.run(|| route_guard::cleanup().unwrap()) > 0);

    assert!(node.run(|| bypass_counter::cleanup().unwrap()));
    assert!(!node.run(|| bypass_counter::cleanup().unwrap()));
    assert_eq!(packets(&node), 0, "a new one");
}

fn comes_back() {
    let mut node = Node::new();
    let pod = node.pod(A);
    let _away = node.move_metadata_away();
    let counter = node.run(|| BypassCounter::install().unwrap());
    let metric = BypassMetric::new(counter).unwrap();
    let told = || {
        metric.collect()[0].get_metric()[0]
            .get_counter()
            .get_value()
    };
    attack(&pod);
    assert!((told() - 4.0).abs() < 0.5);
    // As a firewall's service does to all tables when it is reloaded.
    assert!(node.run(|| bypass_counter::cleanup().unwrap()));
    assert!(told() < 0.5);
    attack(&pod);
    assert!((told() - 4.0).abs() < 0.5);
}
