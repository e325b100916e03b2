//! Packets from below all sockets, and where they do not come to.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use kiam_agent::route_guard::{self, RouteGuard, RouteGuardMetrics};
use testbed::sandbox::patient;
use tokio::time::Instant;

use crate::Test;
use crate::sandbox::{METADATA, METADATA_V6, NODE, Node, Pod, beside, patience, run_in};

pub(crate) const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const PORT: u16 = 4000;

pub(crate) const TESTS: &[Test] = &[
    ("route_guard_refuses_frames_that_are_forwarded", forwarded),
    (
        "route_guard_refuses_frames_to_the_node_s_own_address",
        local,
    ),
    ("route_guard_that_is_removed_comes_back", heals),
];

/// Where the metadata service listens, for either family.
pub(crate) struct Service(UdpSocket);

impl Service {
    pub(crate) fn start(netns: &str) -> Self {
        let socket = run_in(netns, || UdpSocket::bind(("::", PORT)).unwrap());
        socket.set_read_timeout(Some(patience())).unwrap();
        Self(socket)
    }

    /// Has its neighbours find it, so that nothing waits while a marker overtakes it.
    pub(crate) fn is_found(&self, node: &Node) {
        for to in [METADATA, METADATA_V6] {
            send(&node.netns(), to, b"first");
            self.0.recv(&mut [0; 16]).unwrap();
        }
    }

    /// What has come before a datagram from `netns` to another address of the service does.
    pub(crate) fn heard(&self, netns: &str, marker: &str) -> Vec<String> {
        send(netns, marker, b"marker");
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 16];
            let length = self.0.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text == "marker" {
                return heard;
            }
            heard.push(text);
        }
    }
}

pub(crate) fn send(netns: &str, to: &str, what: &[u8]) {
    run_in(netns, || {
        let any = if to.contains(':') { "::" } else { "0.0.0.0" };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.send_to(what, (to, PORT)).unwrap();
    });
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
        send(&pod.netns, to, b"socket");
    }
}

/// Rules of both families, and what is in our table.
fn routing(node: &Node) -> String {
    let mut all = String::new();
    for command in [
        "-4 rule",
        "-6 rule",
        "-4 route show table 169254",
        "-6 route show table 169254",
    ] {
        let netns = node.netns();
        let args = ["-n", &netns].into_iter().chain(command.split(' '));
        // A table that never was is an error.
        all += &String::from_utf8(Command::new("ip").args(args).output().unwrap().stdout).unwrap();
    }
    all
}

fn guards(node: &Node, pod: &Pod, service: &Service, marker: &str) {
    let before = routing(node);
    service.is_found(node);
    attack(pod);
    let heard = service.heard(&pod.netns, marker);
    assert_eq!(heard, ["frame", "socket", "frame", "socket"], "it can fail");

    install(node);
    let guarded = routing(node);
    attack(pod);
    assert_eq!(service.heard(&pod.netns, marker), [""; 0], "{guarded}");
    // The node's own packets pass.
    for to in [METADATA, METADATA_V6] {
        send(&node.netns(), to, b"node");
    }
    assert_eq!(service.heard(&pod.netns, marker), ["node", "node"]);
    // The next agent finds it there.
    install(node);
    assert_eq!(routing(node), guarded);

    assert!(node.run(|| route_guard::cleanup().unwrap()) >= 4);
    assert_eq!(routing(node), before);
    assert_eq!(node.run(|| route_guard::cleanup().unwrap()), 0);
    attack(pod);
    assert_eq!(service.heard(&pod.netns, marker).len(), 4);
}

fn forwarded() {
    let mut node = Node::new();
    let a = node.pod(A);
    let away = node.move_metadata_away();
    let service = Service::start(&away);
    guards(&node, &a, &service, "10.99.0.3");
    assert!(!routing(&node).contains("100:"), "nothing is moved");
}

fn local() {
    let mut node = Node::new();
    let a = node.pod(A);
    let service = Service::start(&node.netns());
    guards(&node, &a, &service, &NODE.to_string());
}

fn heals() {
    let node = Node::new();
    let metrics = RouteGuardMetrics::new().unwrap();
    let before = routing(&node);
    let (installed, installing) = std::sync::mpsc::channel();
    let keep = |stopped| {
        node.run(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let guard = RouteGuard::install(metrics.clone()).unwrap();
                installed.send(()).unwrap();
                guard.keep(stopped, true).await;
            });
        });
    };
    beside(keep, || {
        installing.recv_timeout(patience()).unwrap();
        let whole = routing(&node);
        for (command, limit) in [
            ("-4 rule del pref 1", 3),
            ("-6 rule del pref 1", 3),
            ("-4 rule add pref 0 lookup local", 3),
            // Of routes the kernel tells nobody here: it is looked at every 10 s.
            ("-4 route flush table 169254", 14),
        ] {
            node.ip(command);
            assert_ne!(routing(&node), whole, "{command}");
            let begun = Instant::now();
            while routing(&node) != whole {
                let late = begun.elapsed() > patient(Duration::from_secs(limit));
                assert!(!late, "{command}: {}", routing(&node));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let counter = metrics.collector();
    let restored = counter.with_label_values(&["restored"]).get();
    assert!(restored >= 4, "{restored}");
    // Told to remove it, it has.
    assert_eq!(routing(&node), before);
}
