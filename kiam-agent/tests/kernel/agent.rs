//! The agent's side of the tests: attached programs, and the identity of their callers.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use kiam_agent::caller::{Identify as _, KernelIdentity, PodRef, Unidentified};
use kiam_agent::kernel::cgroup::{Mount, Pods};
use kiam_agent::kernel::{HostNetwork, KernelLog, Programs, Redirect};
use kiam_common::pod_uid::PodUid;
use kiam_ebpf::Verdict;

use crate::fixture::{AGENT, Node};
use crate::hang_limit::hang_limit;
use crate::listener::Listener;

/// Attached programs, and a listener that answers with the identity of its caller.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) programs: Programs,
    pub(crate) identity: KernelIdentity,
    pub(crate) listener: Listener,
}

impl Agent {
    #[track_caller]
    pub(crate) fn start(node: &Node) -> Self {
        Self::start_with(node, &redirect(node))
    }

    #[track_caller]
    pub(crate) fn start_with(node: &Node, redirect: &Redirect) -> Self {
        let listener = node.listen(AGENT);
        let pods = node.pods_cgroup().path();
        let programs = Programs::attach(redirect).unwrap();
        let known = Pods::new(&Mount::find().unwrap(), pods).unwrap();
        let identity = KernelIdentity::new(programs.attestor(), known);
        Self {
            programs,
            identity,
            listener,
        }
    }

    /// Accepts the next connection, sends its identity to the client, and returns it.
    #[track_caller]
    pub(crate) fn answer(&self) -> Result<PodRef, Unidentified> {
        let (stream, peer) = self.listener.accept();
        self.answer_to(stream, peer)
    }

    #[track_caller]
    pub(crate) fn answer_to(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<PodRef, Unidentified> {
        let who = self.identity.identify(peer);
        let text = match &who {
            Ok(pod) => pod.to_string(),
            Err(refusal) => refusal.as_label().to_owned(),
        };
        // A client that has gone away cannot receive it.
        let _ = stream.write_all(text.as_bytes());
        // Unread bytes would make the close a reset, which may overtake the answer.
        std::thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(hang_limit()));
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        who
    }

    #[track_caller]
    pub(crate) fn count(&self, verdict: Verdict) -> u64 {
        let counts = self.programs.verdicts().unwrap();
        counts
            .into_iter()
            .filter_map(|(counted, count)| (counted == verdict).then_some(count))
            .sum()
    }
}

pub(crate) fn redirect(node: &Node) -> Redirect {
    Redirect {
        pods: node.pods_cgroup().path().to_owned(),
        agent: AGENT,
        host_netns_cookie: node.netns_cookie(),
        host_network: HostNetwork::Passthrough,
        guard_egress: true,
        container: None,
        log: KernelLog::Off,
        bpffs: node.bpffs().to_owned(),
    }
}

pub(crate) fn pod(uid: &str) -> Result<PodRef, Unidentified> {
    Ok(PodRef::Uid(PodUid::new(uid)))
}
