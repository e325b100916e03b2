//! The bypass counter counts packets past the kernel programs, and no others.

use kiam_agent::bypass_counter::{self, BypassCounter, BypassMetric};
use kiam_agent::route_guard;
use prometheus::core::Collector as _;

use crate::fixture::{METADATA, METADATA_V6, Node};
use crate::route_guard::{A, Service, attack, install as install_route_guard, send};

/// Count of an agent that starts now.
fn packets(node: &Node) -> u64 {
    node.run(|| {
        BypassCounter::install()
            .unwrap()
            .packets()
            .unwrap()
            .unwrap()
    })
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn frames_that_bypass_the_programs_are_counted_and_nothing_else() {
    let node = Node::new();
    let pod = node.pod(A);
    let away = node.move_metadata_service();
    let marker = away.address().to_string();
    let service = Service::start(away.netns());
    assert!(!node.run(|| bypass_counter::cleanup().unwrap()));
    assert_eq!(packets(&node), 0);

    service.is_found(&node);
    // A frame and a datagram for each family, all of which arrive.
    attack(&pod);
    assert_eq!(service.received(pod.netns(), &marker).len(), 4);
    assert_eq!(packets(&node), 4);
    // Packets to other addresses and packets of the node are not counted.
    for to in [METADATA, METADATA_V6] {
        send(node.netns(), to, b"node");
    }
    assert_eq!(service.received(pod.netns(), &marker).len(), 2);
    assert_eq!(packets(&node), 4);

    // Packets that the route guard refuses afterwards are counted, too.
    install_route_guard(&node);
    attack(&pod);
    assert_eq!(service.received(pod.netns(), &marker), [""; 0]);
    assert_eq!(packets(&node), 8);
    assert!(node.run(|| route_guard::cleanup().unwrap()) > 0);

    assert!(node.run(|| bypass_counter::cleanup().unwrap()));
    assert!(!node.run(|| bypass_counter::cleanup().unwrap()));
    assert_eq!(packets(&node), 0, "a new one");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_removed_counter_is_restored() {
    let node = Node::new();
    let pod = node.pod(A);
    let _away = node.move_metadata_service();
    let counter = node.run(|| BypassCounter::install().unwrap());
    let metric = BypassMetric::new(counter).unwrap();
    let counted = || {
        metric.collect()[0].get_metric()[0]
            .get_counter()
            .get_value()
    };
    attack(&pod);
    assert!((counted() - 4.0).abs() < 0.5);
    // As a reload of the firewall service removes all tables.
    assert!(node.run(|| bypass_counter::cleanup().unwrap()));
    assert!(counted() < 0.5);
    attack(&pod);
    assert!((counted() - 4.0).abs() < 0.5);
}
