//! The route guard refuses frames that a pod makes below all sockets.

use std::net::UdpSocket;
use std::process::Command;

use kiam_agent::route_guard::{self, RouteGuard, RouteGuardMetrics};
use testbed::sandbox::Netns;

use crate::fixture::{METADATA, METADATA_V6, NODE, Node, Pod, beside};
use crate::frozen_clock::{Cause, frozen_clock};
use crate::hang_limit::hang_limit;

pub(crate) const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const PORT: u16 = 4000;

/// A socket of the metadata service, for either family.
pub(crate) struct Service(UdpSocket);

impl Service {
    pub(crate) fn start(netns: &Netns) -> Self {
        let socket = netns
            .run(|| UdpSocket::bind(("::", PORT)).unwrap())
            .unwrap();
        socket.set_read_timeout(Some(hang_limit())).unwrap();
        Self(socket)
    }

    /// Makes its neighbors resolve its address: a packet that waits could be overtaken by a marker.
    pub(crate) fn is_found(&self, node: &Node) {
        for to in [METADATA, METADATA_V6] {
            send(node.netns(), to, b"first");
            self.0.recv(&mut [0; 16]).unwrap();
        }
    }

    /// Datagrams that arrive before one from `netns` to another address of the service.
    pub(crate) fn received(&self, netns: &Netns, marker: &str) -> Vec<String> {
        send(netns, marker, b"marker");
        let mut received = Vec::new();
        loop {
            let mut bytes = [0; 16];
            let length = self.0.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text == "marker" {
                return received;
            }
            received.push(text);
        }
    }
}

pub(crate) fn send(netns: &Netns, to: &str, what: &[u8]) {
    let sent = netns.run(|| {
        let any = if to.contains(':') { "::" } else { "0.0.0.0" };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.send_to(what, (to, PORT)).unwrap();
    });
    sent.unwrap();
}

pub(crate) fn install(node: &Node) {
    node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let _entered = runtime.enter();
        let metrics = RouteGuardMetrics::new().unwrap();
        RouteGuard::install(metrics).unwrap();
    });
}

/// A frame and a datagram to each of the metadata service's addresses.
pub(crate) fn attack(pod: &Pod) {
    for to in [METADATA, METADATA_V6] {
        let frame = pod.run(&["frame", &NODE.to_string(), to, &PORT.to_string()]);
        assert_eq!(frame.error, None, "{to}");
        send(pod.netns(), to, b"socket");
    }
}

/// Rules of both families, and routes in the table of the route guard.
fn routing(node: &Node) -> String {
    let mut all = String::new();
    for command in [
        "-4 rule",
        "-6 rule",
        "-4 route show table 169254",
        "-6 route show table 169254",
    ] {
        let args = ["-n", node.netns().name()];
        let args = args.into_iter().chain(command.split(' '));
        // A table that does not exist is an error.
        all += &String::from_utf8(Command::new("ip").args(args).output().unwrap().stdout).unwrap();
    }
    all
}

#[track_caller]
fn ip(node: &Node, command: &str) {
    let args = ["-n", node.netns().name()].into_iter();
    let args = args.chain(command.split(' '));
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

fn guards(node: &Node, pod: &Pod, service: &Service, marker: &str) {
    let before = routing(node);
    service.is_found(node);
    attack(pod);
    let received = service.received(pod.netns(), marker);
    assert_eq!(
        received,
        ["frame", "socket", "frame", "socket"],
        "it can fail"
    );

    install(node);
    let guarded = routing(node);
    attack(pod);
    assert_eq!(service.received(pod.netns(), marker), [""; 0], "{guarded}");
    // The node's own packets pass.
    for to in [METADATA, METADATA_V6] {
        send(node.netns(), to, b"node");
    }
    assert_eq!(service.received(pod.netns(), marker), ["node", "node"]);
    // The next agent finds it in place.
    install(node);
    assert_eq!(routing(node), guarded);

    assert!(node.run(|| route_guard::cleanup().unwrap()) >= 4);
    assert_eq!(routing(node), before);
    assert_eq!(node.run(|| route_guard::cleanup().unwrap()), 0);
    attack(pod);
    assert_eq!(service.received(pod.netns(), marker).len(), 4);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn forwarded_frames_are_refused() {
    let node = Node::new();
    let a = node.pod(A);
    let away = node.move_metadata_service();
    let service = Service::start(away.netns());
    guards(&node, &a, &service, &away.address().to_string());
    assert!(!routing(&node).contains("100:"), "nothing is moved");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn frames_to_an_address_of_the_node_are_refused() {
    let node = Node::new();
    let a = node.pod(A);
    let service = Service::start(node.netns());
    guards(&node, &a, &service, &NODE.to_string());
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_removed_route_guard_is_restored() {
    let node = Node::new();
    let metrics = RouteGuardMetrics::new().unwrap();
    let before = routing(&node);
    let count = |outcomes: &[&str]| -> u64 {
        let counter = metrics.collector();
        let counts = outcomes.iter();
        counts
            .map(|outcome| counter.with_label_values(&[*outcome]).get())
            .sum()
    };
    let restored = || count(&["restored"]);
    let checks = || count(&["intact", "restored", "failed"]);
    let (clock, runtime) = frozen_clock();
    let (installed, installing) = std::sync::mpsc::channel();
    let keep = |stopped| {
        node.run(|| {
            runtime.block_on(async {
                let guard = RouteGuard::install(metrics.clone()).unwrap();
                installed.send(()).unwrap();
                guard.run(stopped, true).await;
            });
        });
    };
    beside(keep, || {
        installing.recv_timeout(hang_limit()).unwrap();
        let whole = routing(&node);
        for (command, cause) in [
            ("-4 rule del pref 1", Cause::Report),
            ("-6 rule del pref 1", Cause::Report),
            ("-4 rule add pref 0 lookup local", Cause::Report),
            // The kernel reports no change of these routes to the agent.
            ("-4 route flush table 169254", Cause::Period),
        ] {
            let before = restored();
            ip(&node, command);
            clock.wait_for(cause, checks, || {
                restored() > before && routing(&node) == whole
            });
        }
    });
    // The loop removes it when it is stopped.
    assert_eq!(routing(&node), before);
}
