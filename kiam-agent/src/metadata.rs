//! The metadata service that pods see: the name and credentials of their role, and nothing else.
//!
//! ```text
//! answer       responses: headers and bodies
//! connection   one connection: its caller, one request, its end
//! slots        limits of connections per pod, and their order
//! path         the route of a path, in any spelling
//! decide       the answer to a pod, from one snapshot of the view
//! denial       reasons for denied requests: message, status and label
//! denial_log   log messages about denied requests, rate limited
//! service      handling of requests, and waiting
//! tokens       tokens of IMDSv2, each bound to its pod
//! passthrough  requests to the node's metadata service on behalf of pods
//! sdk          kinds of clients
//! v1_users     pods that send no tokens, and their clients
//! metrics      metrics of the service
//! ```

mod answer;
mod caller;
mod connection;
mod decide;
mod denial;
mod denial_log;
mod headers;
mod metrics;
mod passthrough;
pub mod path;
mod sdk;
mod service;
mod slots;
mod tokens;
mod v1_users;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use kiam_common::listen;
use kiam_common::metadata_address::METADATA_SERVICE;
use regex::Regex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use metrics::MetadataMetrics;
pub use sdk::Sdk;
pub(crate) use v1_users::V1Use;
pub use v1_users::V1Users;

use crate::args::ImdsV2;
use crate::caller::Identify;
use crate::stream::ConnectionStates;
use crate::token_key::TokenKey;
use crate::view::View;
use connection::Owner;
use denial_log::DenialLog;
use passthrough::Upstream;
use slots::{Limits, Slots};
use tokens::Tokens;

/// Time during which the agent still accepts connections in a shutdown.
const ACCEPT_AFTER_STOP: Duration = Duration::from_millis(100);
/// Pause after a failed accept, such as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time from the start to the second check of the accept queue.
const SECOND_QUEUE_CHECK: Duration = Duration::from_secs(1);
/// Interval between later checks.
const QUEUE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Settings and limits of the service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum time to hold a request for a pod or credentials that have not arrived yet.
    pub pod_wait: Duration,
    /// Treatment of requests without a token of IMDSv2.
    pub imds_v2: ImdsV2,
    /// Paths of the node's metadata service that pods may read; must match the whole path.
    pub allow_routes: Option<Regex>,
    /// Address of the node's metadata service.
    pub upstream: SocketAddr,
    /// Redirect the role's path without a trailing slash, as kiam did.
    pub legacy_redirects: bool,
    /// Serve credentials in the format of SDKs in containers.
    pub container: bool,
    /// Maximum number of connections of all pods. Beyond it, an idle connection of the pod with the
    /// most connections is closed.
    pub max_connections: usize,
    /// Maximum number of connections per pod. Beyond it, connections are closed, idle ones first.
    pub max_connections_per_pod: usize,
    /// Maximum number of requests per pod that are handled at once. ForeignPrograms wait in order.
    pub max_answered_per_pod: usize,
    /// Maximum time that a connection waits for its turn.
    pub turn_timeout: Duration,
    /// Maximum time from the start of a connection to its first byte, from there to the end of the
    /// request's head, and from there to the end of the body.
    pub request_timeout: Duration,
    /// Maximum time to handle a request, with reading and writing.
    pub lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pod_wait: Duration::from_millis(800),
            imds_v2: ImdsV2::Optional,
            allow_routes: None,
            upstream: METADATA_SERVICE,
            legacy_redirects: false,
            container: false,
            max_connections: 4096,
            max_connections_per_pod: 1024,
            max_answered_per_pod: 64,
            turn_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(15),
        }
    }
}

impl Settings {
    /// Returns the maximum time to finish requests during a shutdown.
    pub(crate) fn grace(&self) -> Duration {
        self.pod_wait + Duration::from_secs(1)
    }
}

/// The service on its listener, not yet running.
pub struct Metadata {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// Source of the current time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Sources of the service.
pub struct Sources {
    /// Clock for the expiration of credentials and tokens.
    pub clock: Clock,
    /// Pods of the node.
    pub view: View,
    /// Identification of callers.
    pub identify: Arc<dyn Identify>,
    /// Key of tokens.
    pub token_key: TokenKey,
    /// State of the connection to a server.
    pub connection: ConnectionStates,
    /// Counters of requests without a token.
    pub v1_users: V1Users,
    /// Metrics of the service.
    pub metrics: MetadataMetrics,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// State that all connections share.
struct Shared {
    settings: Settings,
    clock: Clock,
    view: View,
    identify: Arc<dyn Identify>,
    connection: ConnectionStates,
    v1_users: V1Users,
    metrics: MetadataMetrics,
    upstream: Upstream,
    tokens: Tokens,
    denial_log: DenialLog,
    slots: Arc<Slots<Owner>>,
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("listener", &self.listener)
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl Metadata {
    /// Returns the address of the listener.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then finishes the requests in progress. When `ready` resolves, the
    /// agent takes over all new connections from an earlier agent.
    pub async fn run(self, ready: impl Future<Output = ()>, stop: CancellationToken) {
        let Self { listener, shared } = self;
        let open = TaskTracker::new();
        let mut ready = pin!(ready.fuse());
        // Connections may be under way when `stop` comes, and no other process would accept them.
        // An agent that has taken over accepts all that begin from now on.
        let mut last = pin!(async {
            stop.cancelled().await;
            tokio::time::sleep(ACCEPT_AFTER_STOP).await;
        });
        let serve = |stream: TcpStream, peer| {
            let caller = shared.caller(&stream, peer);
            open.spawn(Arc::clone(&shared).serve(stream, caller, stop.clone()));
        };
        let mut queue_check = pin!(tokio::time::sleep(Duration::ZERO));
        let mut pause = SECOND_QUEUE_CHECK;
        loop {
            let accepted = tokio::select! {
                () = &mut last => break,
                () = &mut queue_check => {
                    if let Some(since) = accept_all(&listener, serve) {
                        shared.identify.accept_queue_empty(since);
                    }
                    queue_check.as_mut().reset(Instant::now() + pause);
                    pause = QUEUE_CHECK_INTERVAL;
                    continue;
                }
                () = &mut ready => {
                    if let Err(error) = listen::take_over(&listener) {
                        tracing::error!(%error, "cannot take over connections from an earlier agent");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => serve(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        open.close();
        open.wait().await;
    }
}

/// Accepts all connections in the kernel's queue, and returns a time at which it was empty; `None`
/// if that is unknown. Tokio's readiness may be older than the queue.
fn accept_all(listener: &TcpListener, serve: impl Fn(TcpStream, SocketAddr)) -> Option<Instant> {
    loop {
        let since = Instant::now();
        let (socket, peer) = match SockRef::from(listener).accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(since),
            // Another error than an empty queue; the next check comes soon.
            Err(_) => return None,
        };
        let stream = socket
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(socket.into()));
        // A connection that is gone already has no caller.
        if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
            serve(stream, peer);
        }
    }
}

/// The bound port, before the sources of the service exist.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
}

impl Listening {
    /// Binds the port, beside an earlier agent that is about to stop. Connections wait in the
    /// kernel's queue until [`Metadata::run`].
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: listen::bind_shared(address)?,
        })
    }

    /// Returns the address of the listener.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Creates the service on this port.
    pub fn service(self, settings: Settings, sources: Sources) -> Metadata {
        Metadata {
            listener: self.listener,
            shared: Arc::new(Shared::new(settings, sources)),
        }
    }
}

impl Shared {
    fn new(settings: Settings, sources: Sources) -> Self {
        let Sources {
            clock,
            view,
            identify,
            token_key,
            connection,
            v1_users,
            metrics,
        } = sources;
        Self {
            slots: Slots::new(Limits {
                open: settings.max_connections,
                open_per_owner: settings.max_connections_per_pod,
                answered_per_owner: settings.max_answered_per_pod,
            }),
            upstream: Upstream::new(settings.upstream),
            settings,
            clock,
            view,
            identify,
            connection,
            v1_users,
            metrics,
            tokens: Tokens::new(&token_key),
            denial_log: DenialLog::default(),
        }
    }
}
