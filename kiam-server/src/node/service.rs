//! The gRPC call: checks the proof, then runs a session.

use std::sync::Arc;
use std::time::Duration;

use kiam_common::api::node::v1::node_service_server::NodeService;
use kiam_common::api::node::v1::{WatchRequest, WatchResponse};
use kiam_common::pod_uid::PodUid;
use kiam_common::tls::Peer;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::adapters::Map;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::NodeName;
use super::proof::{Evidence, NodeProof, ProofError, Proved};
use super::session::{Message, Sender, Session};
use super::streams::{PROVED, StreamAge, StreamMetrics, Streams};
use crate::cluster::Cluster;
use crate::credentials::Store;
use crate::policy::Settings;
use crate::report::Reports;

/// Messages of a stream that wait for the connection.
const MAX_WAITING: usize = 16;
/// The limit for checking a proof.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC service of the node stream.
#[derive(Debug)]
pub struct Service {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    settings: Arc<Settings>,
    proof: NodeProof,
    age: StreamAge,
    streams: Streams,
    metrics: StreamMetrics,
    reports: Reports,
    stop: CancellationToken,
}

impl Service {
    /// Decides about the pods in `cluster` according to `settings`, for agents that prove their
    /// node. Streams end after `age`, and when `stop` is cancelled.
    pub fn new(
        cluster: Arc<Cluster>,
        store: Arc<Store>,
        settings: Arc<Settings>,
        proof: NodeProof,
        age: StreamAge,
        metrics: StreamMetrics,
        stop: CancellationToken,
    ) -> Self {
        let streams = Streams::new(&metrics);
        Self {
            cluster,
            store,
            settings,
            proof,
            age,
            streams,
            metrics,
            reports: Reports::off(),
            stop,
        }
    }

    /// Reports the decisions of the streams.
    #[must_use]
    pub fn with_reports(mut self, reports: Reports) -> Self {
        self.reports = reports;
        self
    }

    /// Returns the open streams.
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }

    fn refuse(&self, reason: &str, status: Status) -> Status {
        self.metrics.refused.with_label_values(&[reason]).inc();
        status
    }

    async fn prove(
        &self,
        node: &NodeName,
        request: &Request<WatchRequest>,
    ) -> Result<Proved, Status> {
        let check = self.proof.check(node, evidence(request));
        let proved = tokio::time::timeout(PROOF_TIMEOUT, check)
            .await
            .unwrap_or_else(|_elapsed| {
                let problem = format!("no response within {} s", PROOF_TIMEOUT.as_secs());
                Err(ProofError::Unavailable { problem })
            });
        let result = proved
            .as_ref()
            .map_or_else(ProofError::as_label, |_| PROVED);
        self.metrics.proofs.with_label_values(&[result]).inc();
        proved.map_err(|error| {
            tracing::warn!(%node, "refused a node stream: {error}");
            self.refuse(error.as_label(), status_of(&error))
        })
    }
}

#[tonic::async_trait]
impl NodeService for Service {
    type WatchStream = Map<ReceiverStream<Message>, fn(Message) -> Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let node: NodeName = match request.get_ref().node.parse() {
            Ok(node) => node,
            Err(error) => {
                return Err(self.refuse("malformed", Status::invalid_argument(error.to_string())));
            }
        };
        if !self.cluster.is_synced() {
            let status = Status::unavailable("this server has not read the cluster yet");
            return Err(self.refuse("not_synced", status));
        }
        let Proved { agent_pod } = self.prove(&node, &request).await?;
        let hello = request.get_ref();
        let slot = self
            .streams
            .open(&node, &hello.agent_version, hello.guarded);
        let Some(slot) = slot else {
            let status = Status::resource_exhausted(
                "this node has too many open streams; check that only one agent runs on it",
            );
            return Err(self.refuse("too_many", status));
        };

        let peer = request.extensions().get::<Peer>().map(|peer| peer.address);
        let WatchRequest {
            agent_version,
            guarded,
            ..
        } = request.into_inner();
        let span = tracing::info_span!("stream", %node, ?peer, agent_version, guarded);
        let signal = Arc::new(Notify::new());
        let subscription = self.cluster.subscribe(node.as_str(), Arc::clone(&signal));
        let session = Session::new(
            node.as_str().into(),
            Arc::clone(&self.cluster),
            Arc::clone(&self.store),
            Arc::clone(&self.settings),
            Arc::clone(&signal),
        )
        .with_reports(&self.reports)
        .with_metrics(&self.metrics);
        let (to, stream) = mpsc::channel(MAX_WAITING);
        let lifetime = Lifetime {
            until: Instant::now() + self.age.draw(),
            agent: agent_pod.map(|uid| AgentPod {
                uid,
                node,
                cluster: Arc::clone(&self.cluster),
                seen: false,
            }),
            stop: self.stop.clone(),
        };
        // The task ends with the stream, whose end closes the channel.
        tokio::spawn(
            async move {
                tracing::info!("opened the stream");
                let reason = run(session, &signal, &to, lifetime).await;
                tracing::info!("closed the stream: {reason}");
                drop((subscription, slot));
            }
            .instrument(span),
        );
        Ok(Response::new(ReceiverStream::new(stream).map(unboxed)))
    }
}

fn unboxed(message: Message) -> Result<WatchResponse, Status> {
    message.map(|message| *message)
}

/// The conditions that end a stream, other than its agent.
struct Lifetime {
    until: Instant,
    agent: Option<AgentPod>,
    stop: CancellationToken,
}

/// The pod whose token proved the node.
struct AgentPod {
    uid: PodUid,
    node: NodeName,
    cluster: Arc<Cluster>,
    /// True once this server has seen the pod, which the API may know earlier.
    seen: bool,
}

impl AgentPod {
    /// Returns whether the proof has ended: the pod was seen, and is gone or on another node.
    fn is_gone(&mut self) -> bool {
        let bound = self
            .cluster
            .pod(self.uid.as_str())
            .and_then(|pod| pod.node.clone());
        match bound {
            Some(node) if *node == *self.node.as_str() => {
                self.seen = true;
                false
            }
            Some(_) => true,
            None => self.seen,
        }
    }
}

/// Sends the changes to the agent until the stream ends, and returns the reason.
async fn run(
    mut session: Session,
    signal: &Notify,
    to: &Sender,
    mut lifetime: Lifetime,
) -> &'static str {
    loop {
        if lifetime.agent.as_mut().is_some_and(AgentPod::is_gone) {
            let gone = "the pod whose token proved this node is gone";
            let _ = to.try_send(Err(Status::unauthenticated(gone)));
            return gone;
        }
        // The send blocks while the agent does not read: the server must still be able to stop.
        let sent = tokio::select! {
            sent = session.send_changes(to) => sent,
            () = lifetime.stop.cancelled() => break,
        };
        if sent.is_err() {
            return "the agent disconnected";
        }
        tokio::select! {
            () = signal.notified() => {}
            () = to.closed() => return "the agent disconnected",
            () = lifetime.stop.cancelled() => break,
            // Not an error: the agent reconnects at once.
            () = tokio::time::sleep_until(lifetime.until) => return "its lifetime is over",
        }
    }
    // Without space in the channel the end of the stream must suffice.
    let leaving = "this server is shutting down";
    let _ = to.try_send(Err(Status::unavailable(leaving)));
    leaving
}

fn evidence(request: &Request<WatchRequest>) -> Evidence<'_> {
    let peer = request.extensions().get::<Peer>();
    let token = request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    Evidence {
        names: peer.map(|peer| peer.names.clone()).unwrap_or_default(),
        token,
    }
}

fn status_of(error: &ProofError) -> Status {
    let text = error.to_string();
    match error {
        ProofError::OtherNode { .. } => Status::permission_denied(text),
        ProofError::Unavailable { .. } => Status::unavailable(text),
        _ => Status::unauthenticated(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::object::ObjectKey;
    use crate::testing::pod;

    #[test]
    fn messages_in_a_channel_are_small() {
        assert!(size_of::<Message>() <= 16);
    }

    #[test]
    fn a_proof_ends_with_the_pod_of_the_agent_once_that_was_seen() {
        let cluster = Arc::new(Cluster::new());
        let mut agent = AgentPod {
            uid: "agent".into(),
            node: "node-1".parse().unwrap(),
            cluster: Arc::clone(&cluster),
            seen: false,
        };
        assert!(!agent.is_gone(), "the server may not have seen it yet");
        cluster.apply(pod("agent", "kube-system", "kiam-agent", "node-1").into());
        assert!(!agent.is_gone());
        cluster.delete(&ObjectKey::Pod("agent".into()));
        assert!(agent.is_gone());
        agent.seen = false;
        cluster.apply(pod("agent", "kube-system", "kiam-agent", "node-2").into());
        assert!(agent.is_gone(), "it is on another node");
    }
}
