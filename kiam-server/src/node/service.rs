//! The gRPC call: proof first, then a session.

use std::sync::Arc;
use std::time::Duration;

use kiam_common::api::node::v1::node_service_server::NodeService;
use kiam_common::api::node::v1::{WatchRequest, WatchResponse};
use kiam_common::tls::Peer;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::NodeName;
use super::proof::{Evidence, NodeProof, ProofError};
use super::session::{Sender, Session};
use crate::cluster::Cluster;
use crate::credentials::Store;
use crate::policy::Settings;

/// Messages of a stream that were sent and not yet taken by the connection.
const MAX_WAITING: usize = 16;
/// A proof that takes longer is given up.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// What is counted about streams.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    streams: IntGauge,
    refused: IntCounterVec,
}

impl StreamMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let streams = IntGauge::new("kiam_node_streams", "Node streams that are open.")?;
        let refused = IntCounterVec::new(
            Opts::new(
                "kiam_node_streams_refused_total",
                "Node streams refused, by reason.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { streams, refused })
    }
}

/// The node stream's service.
#[derive(Debug)]
pub struct Service {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    settings: Arc<Settings>,
    proof: NodeProof,
    metrics: StreamMetrics,
    stop: CancellationToken,
}

impl Service {
    /// Streams `cluster`, decided by `settings`, to whoever proves its node. Streams end when
    /// `stop` is cancelled.
    #[must_use]
    pub const fn new(
        cluster: Arc<Cluster>,
        store: Arc<Store>,
        settings: Arc<Settings>,
        proof: NodeProof,
        metrics: StreamMetrics,
        stop: CancellationToken,
    ) -> Self {
        Self {
            cluster,
            store,
            settings,
            proof,
            metrics,
            stop,
        }
    }

    fn refuse(&self, reason: &str, status: Status) -> Status {
        self.metrics.refused.with_label_values(&[reason]).inc();
        status
    }

    async fn prove(&self, node: &NodeName, request: &Request<WatchRequest>) -> Result<(), Status> {
        let check = self.proof.check(node, evidence(request));
        let proved = tokio::time::timeout(PROOF_TIMEOUT, check)
            .await
            .unwrap_or_else(|_elapsed| {
                let problem = format!("no answer within {} s", PROOF_TIMEOUT.as_secs());
                Err(ProofError::Unavailable { problem })
            });
        proved.map_err(|error| {
            tracing::warn!(%node, "refused a node stream: {error}");
            self.refuse(error.as_label(), status_of(&error))
        })
    }
}

#[tonic::async_trait]
impl NodeService for Service {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

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
        self.prove(&node, &request).await?;

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
        );
        let (to, stream) = mpsc::channel(MAX_WAITING);
        let (open, stop) = (Open::of(&self.metrics.streams), self.stop.clone());
        // Ends with the stream: the agent's end closes the channel.
        tokio::spawn(
            async move {
                tracing::info!("opened");
                run(session, &signal, &to, &stop).await;
                tracing::info!("closed");
                drop((subscription, open));
            }
            .instrument(span),
        );
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn run(mut session: Session, signal: &Notify, to: &Sender, stop: &CancellationToken) {
    loop {
        // While the agent takes nothing, the server may still stop.
        let told = tokio::select! {
            told = session.tell(to) => told,
            () = stop.cancelled() => break,
        };
        if told.is_err() {
            return;
        }
        tokio::select! {
            () = signal.notified() => {}
            () = to.closed() => return,
            () = stop.cancelled() => break,
        }
    }
    // If there is no room for the reason, the end of the stream says enough.
    let _ = to.try_send(Err(Status::unavailable("this server is going away")));
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

/// Counts a stream while it is open.
struct Open(IntGauge);

impl Open {
    fn of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
