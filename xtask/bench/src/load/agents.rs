//! Agents reduced to the stream of their node: each with a certificate and a connection of its own,
//! over the real protocol. They check each update and its time.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use kiam_common::api::node::v1 as api;
use kiam_common::api::node::v1::node_service_client::NodeServiceClient;
use kiam_common::flags::TlsFlags;
use kiam_common::metrics::Registry;
use kiam_common::tls::{self, ClientTls, TlsMetrics, TlsSide};
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fleet::{Fleet, number};
use testbed::pki::Authority;

/// Handshakes at once.
const CONNECTING: usize = 32;

/// All agents.
pub(super) struct Agents {
    progress: Arc<Progress>,
    streams: JoinSet<Result<()>>,
}

/// Updates that all agents have received.
struct Progress {
    fleet: Fleet,
    /// Pods whose credentials have arrived.
    served: AtomicU64,
    changes: watch::Sender<()>,
    /// Times at which later pods were bound; below, times until their credentials arrived.
    bound: Mutex<HashMap<u64, Instant>>,
    pushed: Mutex<Vec<Duration>>,
}

impl Agents {
    /// Connects an agent of each node.
    pub(super) async fn connect(
        fleet: Fleet,
        server: SocketAddr,
        authority: &Arc<Authority>,
        folder: &Path,
    ) -> Result<Self> {
        let progress = Arc::new(Progress {
            fleet,
            served: AtomicU64::new(0),
            changes: watch::Sender::new(()),
            bound: Mutex::default(),
            pushed: Mutex::default(),
        });
        let connecting = futures::stream::iter(0..fleet.nodes).map(|node| {
            let (authority, progress) = (Arc::clone(authority), Arc::clone(&progress));
            let folder = folder.join(Fleet::node(node));
            async move {
                let stream = connect(node, server, authority, folder).await;
                stream
                    .with_context(|| format!("the agent of node-{node} has no stream"))
                    .map(|stream| progress.read(node, stream))
            }
        });
        let mut streams = JoinSet::new();
        let mut connected = std::pin::pin!(connecting.buffer_unordered(CONNECTING));
        while let Some(stream) = connected.try_next().await? {
            streams.spawn(stream);
        }
        Ok(Self {
            progress: Arc::clone(&progress),
            streams,
        })
    }

    /// Returns the number of pods whose credentials have arrived.
    pub(super) fn served(&self) -> u64 {
        self.progress.served.load(Ordering::Relaxed)
    }

    /// Waits until the credentials of that many pods have arrived.
    pub(super) async fn wait_for(&mut self, pods: u64, limit: Duration) -> Result<()> {
        let mut changes = self.progress.changes.subscribe();
        let progress = Arc::clone(&self.progress);
        let waiting = async {
            while progress.served.load(Ordering::Relaxed) < pods {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(limit, waiting) => {
                let served = self.served();
                ended.ok().with_context(|| format!("credentials of {served} of {pods} pods came within {limit:?}"))
            }
            ended = self.streams.join_next() => match ended {
                Some(Ok(Err(error))) => Err(error),
                _ => bail!("a stream has ended"),
            },
        }
    }

    /// A pod is bound now.
    pub(super) fn bound(&self, pod: u64) {
        lock(&self.progress.bound).insert(pod, Instant::now());
    }

    /// Times from binding to credentials, sorted.
    pub(super) fn pushed(&self) -> Vec<Duration> {
        let mut pushed = lock(&self.progress.pushed).clone();
        pushed.sort_unstable();
        pushed
    }

    /// Bound pods whose credentials have not arrived.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.progress.bound).len()
    }
}

type Stream = tonic::Streaming<api::WatchResponse>;

async fn connect(
    node: u64,
    server: SocketAddr,
    authority: Arc<Authority>,
    folder: PathBuf,
) -> Result<Stream> {
    let files =
        tokio::task::spawn_blocking(move || authority.write_node(&folder, &Fleet::node(node)));
    let files = files.await??;
    let flags = TlsFlags {
        cert: files.cert,
        key: files.key,
        ca: files.ca,
    };
    let metrics = TlsMetrics::new(TlsSide::Client, &Registry::new())?;
    let tls = ClientTls::client(flags, metrics)?;
    let name = ServerName::try_from("kiam-server")?;
    let channel = tls::connect(server, name, &tls).await?;
    let request = api::WatchRequest {
        node: Fleet::node(node),
        agent_version: "load".to_owned(),
        guarded: true,
    };
    let stream = NodeServiceClient::new(channel).watch(request).await?;
    Ok(stream.into_inner())
}

impl Progress {
    async fn read(self: Arc<Self>, node: u64, mut stream: Stream) -> Result<()> {
        let mut issued = HashSet::new();
        let mut waiting: HashMap<u64, Vec<u64>> = HashMap::new();
        while let Some(message) = stream.message().await? {
            use api::watch_response::Update;
            match message.update.context("an empty message")? {
                Update::PodApplied(pod) => {
                    let pod_number = number(&pod.uid)?;
                    ensure!(
                        self.fleet.node_of(pod_number) == node,
                        "node-{node} receives {}/{}, a pod of another node",
                        pod.namespace,
                        pod.name
                    );
                    let Some(api::pod_applied::Outcome::Granted(granted)) = pod.outcome else {
                        continue;
                    };
                    if issued.contains(&granted.identity) {
                        self.serve(pod_number);
                    } else {
                        waiting
                            .entry(granted.identity)
                            .or_default()
                            .push(pod_number);
                    }
                }
                Update::CredentialsIssued(credentials) => {
                    issued.insert(credentials.identity);
                    for pod in waiting.remove(&credentials.identity).unwrap_or_default() {
                        self.serve(pod);
                    }
                }
                Update::CredentialsFailed(failed) => {
                    bail!("credentials cannot be fetched: {}", failed.error)
                }
                Update::PodRemoved(_) | Update::Synced(_) => {}
            }
        }
        bail!("the stream of node-{node} has ended")
    }

    fn serve(&self, pod: u64) {
        if let Some(bound) = lock(&self.bound).remove(&pod) {
            lock(&self.pushed).push(bound.elapsed());
        }
        self.served.fetch_add(1, Ordering::Relaxed);
        self.changes.send_replace(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
