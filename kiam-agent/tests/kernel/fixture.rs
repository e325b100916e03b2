//! A node of the test bed's sandbox, as the tests of the kernel programs use it: its pods run
//! `client.py`, and what fails panics at the line of the test.
//!
//! ```text
//! node    10.0.1.1    fd00:10::1:1    the agent; 169.254.169.254 and fd00:ec2::254 on its loopback
//! pods    10.101.0.1, .2, …           links p1, p2, …; their default route is the node
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use kiam_agent::kernel::own_netns_cookie;
use testbed::sandbox::{Cgroup, Netns, NodeOptions, Place, PodOptions, Sandbox};
use testbed::sandbox::{Node as SandboxNode, Pod as SandboxPod};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Report};
use crate::listener::Listener;

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
pub(crate) const AGENT: SocketAddrV4 = SocketAddrV4::new(NODE, 8181);
pub(crate) const AGENT_V6: &str = "[fd00:10::1:1]:8181";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const METADATA_V6: &str = "fd00:ec2::254";

const MARKER: u16 = 9;

/// A node in a sandbox of its own, which is removed with it.
#[derive(Debug)]
pub(crate) struct Node(SandboxNode);

/// A pod of a node, and the cgroup in it where its client runs.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    place: Place,
    pod: Arc<SandboxPod>,
}

impl Node {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        Self(sandbox.node("node-1", NodeOptions::default()).unwrap())
    }

    /// The BPF file system where programs and maps are pinned.
    pub(crate) fn bpffs(&self) -> &Path {
        self.0.bpffs().path()
    }

    pub(crate) fn netns(&self) -> &Netns {
        self.0.place().netns()
    }

    pub(crate) fn netns_cookie(&self) -> u64 {
        self.run(|| own_netns_cookie().unwrap())
    }

    /// Runs `ip` in the node's network namespace.
    #[track_caller]
    pub(crate) fn ip(&self, command: &str) {
        self.netns().ip(command).unwrap();
    }

    /// The cgroup of all pods.
    pub(crate) fn pods_cgroup(&self) -> &Cgroup {
        self.0.kubepods()
    }

    /// A cgroup outside of that of all pods.
    pub(crate) fn other_cgroup(&self) -> &Cgroup {
        self.0.place().cgroup()
    }

    /// Adds a pod.
    #[track_caller]
    pub(crate) fn pod(&self, uid: &str) -> Pod {
        self.pod_with(PodOptions {
            uid: Some(uid.to_owned()),
            ..PodOptions::default()
        })
    }

    /// Adds a `hostNetwork` pod.
    #[track_caller]
    pub(crate) fn host_network_pod(&self, uid: &str) -> Pod {
        self.pod_with(PodOptions {
            uid: Some(uid.to_owned()),
            host_network: true,
            ..PodOptions::default()
        })
    }

    #[track_caller]
    fn pod_with(&self, options: PodOptions) -> Pod {
        let pod = self.0.pod(options).unwrap();
        Pod {
            place: pod.place().clone(),
            pod: Arc::new(pod),
        }
    }

    /// Runs a closure in the node's network namespace.
    #[track_caller]
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.netns().run(what).unwrap()
    }

    /// Runs a future in the node's network namespace.
    #[track_caller]
    pub(crate) fn block_on<T: Send>(&self, future: impl AsyncFnOnce() -> T + Send) -> T {
        self.netns().block_on(future).unwrap()
    }

    /// Moves the metadata service out of the node to a pod, to which the node forwards.
    #[track_caller]
    pub(crate) fn move_metadata_service(&self) -> Pod {
        let service = self.pod("00000000-0000-4000-8000-000000000000");
        let (v4, v6) = (service.address(), service.pod.ipv6().unwrap());
        self.ip(&format!(
            "addr del {METADATA}/32 dev lo
             addr del {METADATA_V6}/128 dev lo
             route add {METADATA}/32 via {v4} src {NODE}
             route add {METADATA_V6}/128 via {v6}"
        ));
        service.ip(&format!(
            "addr add {METADATA}/32 dev lo
             addr add {METADATA_V6}/128 dev lo nodad"
        ));
        service
    }

    /// Accepts connections in the node's network namespace.
    #[track_caller]
    pub(crate) fn listen(&self, address: impl Into<SocketAddr>) -> Listener {
        Listener::new(self.netns().listen(address.into()).unwrap())
    }

    /// Counts the packets to the metadata service that arrive at the node while `pod` does
    /// something.
    #[track_caller]
    pub(crate) fn count(&self, pod: &Pod, what: impl FnOnce()) -> u32 {
        let sniffer = Client::start(self.0.place(), &["sniff", &MARKER.to_string()]);
        sniffer.wait_for_line(0);
        what();
        let marker = pod.run(&["udp", &NODE.to_string(), &MARKER.to_string()]);
        assert_eq!(marker.error, None);
        sniffer.report().count.unwrap()
    }
}

impl Pod {
    /// Runs the client in the pod, to its end.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Report {
        self.start(args).report()
    }

    /// Starts the client in the pod.
    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Client {
        Client::start(&self.place, args)
    }

    /// The same pod's network, but a client in another cgroup.
    pub(crate) fn in_cgroup(&self, cgroup: Cgroup) -> Self {
        Self {
            place: self.place.with_cgroup(cgroup),
            pod: Arc::clone(&self.pod),
        }
    }

    /// Runs `ip` in the pod's network namespace.
    #[track_caller]
    pub(crate) fn ip(&self, command: &str) {
        self.netns().ip(command).unwrap();
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.uid()
    }

    #[track_caller]
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.pod.ip().unwrap()
    }

    pub(crate) fn netns(&self) -> &Netns {
        self.place.netns()
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        self.place.cgroup()
    }
}

/// Makes a cgroup at a path below another one, with those in between; at `""` the other one.
#[track_caller]
pub(crate) fn descendant(of: &Cgroup, path: &str) -> Cgroup {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(of.clone(), |cgroup, name| cgroup.child(name).unwrap())
}

/// Runs a closure on a thread beside a test's steps, until these end, also by a panic: the thread
/// is stopped, so that the test does not wait for it forever.
pub(crate) fn beside<T>(
    runs: impl FnOnce(CancellationToken) + Send,
    steps: impl FnOnce() -> T,
) -> T {
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stop = stop.clone().drop_guard();
        scope.spawn(move || runs(stop));
        steps()
    })
}

#[test]
fn a_thread_beside_steps_that_panic_is_stopped() {
    let panicked = std::panic::catch_unwind(|| {
        let runs = |stop: CancellationToken| {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(stop.cancelled());
        };
        beside(runs, || panic!("the reason"));
    });
    let reason = panicked.unwrap_err();
    assert_eq!(reason.downcast_ref(), Some(&"the reason"));
}
