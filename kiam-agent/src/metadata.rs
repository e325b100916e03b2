//! The metadata service that pods see: their own role's name and credentials, and nothing else.
//!
//! ```text
//! answer       what is written: headers, bodies
//! connection   one connection: who is it, one request, its end
//! slots        how many connections each pod may have, and whose turn it is
//! path         what a path asks for, however it is spelled
//! decide       what a pod is answered, by one snapshot of the view
//! refusal      why not, in words, a status and a label
//! refusal_log  that it was refused, not too often
//! service      from a request to its answer, and waiting
//! tokens       IMDSv2's, which only the pod that asked for one can use
//! passthrough  what of the node's own service pods may read, asked for by the agent
//! sdk          what kind of client asks
//! v1_users     which pods ask without a token, and by what client
//! metrics      what is counted
//! ```

mod answer;
mod caller;
mod connection;
mod decide;
mod headers;
mod metrics;
mod passthrough;
pub mod path;
mod refusal;
mod refusal_log;
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
use regex::Regex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use metrics::MetadataMetrics;
pub use sdk::Sdk;
pub use v1_users::{V1Use, V1Users};

use crate::args::ImdsV2;
use crate::caller::Identify;
use crate::stream::Standings;
use crate::token_key::TokenKey;
use crate::view::View;
use connection::Owner;
use passthrough::Upstream;
use refusal_log::RefusalLog;
use slots::{Limits, Slots};
use tokens::Tokens;

/// How long the agent accepts connections when it is told to stop.
const LAST_COME: Duration = Duration::from_millis(100);
/// A wait for file descriptors to be closed by somebody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// From the start to the second look whether nothing waits to be accepted.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// From each look to the next one.
const LOOK: Duration = Duration::from_secs(10);

/// The service's choices and limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a request is held for a pod or credentials that are still on their way.
    pub pod_wait: Duration,
    /// Whether requests without a token of IMDSv2 are answered.
    pub imds_v2: ImdsV2,
    /// Paths of the node's own service that pods may read, each as a whole.
    pub allow_routes: Option<Regex>,
    /// Where the node's own service is.
    pub upstream: SocketAddr,
    /// Whether the role's path without a slash at its end is answered by a redirect, as kiam did.
    pub legacy_redirects: bool,
    /// Whether credentials are served as containers' SDKs ask for them.
    pub container: bool,
    /// Connections of all pods together. When there are more, one that has asked nothing yet is closed,
    /// of the pod that has the most.
    pub max_connections: usize,
    /// Connections of one pod. More are closed, those first that have asked nothing yet.
    pub max_connections_per_pod: usize,
    /// Requests of one pod that are answered at once. More wait, in order.
    pub max_answered_per_pod: usize,
    /// How long a connection waits for its turn to be answered.
    pub turn_timeout: Duration,
    /// From a connection's begin to its first byte, from there to its request's head being whole, and
    /// from there to the body's end.
    pub request_timeout: Duration,
    /// The longest that answering one request takes, with its reading and writing.
    pub lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pod_wait: Duration::from_millis(800),
            imds_v2: ImdsV2::Optional,
            allow_routes: None,
            upstream: passthrough::METADATA,
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
    /// How long what is in flight may take when the service stops.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.pod_wait + Duration::from_secs(1)
    }
}

/// The service, bound and not yet serving.
pub struct Metadata {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What time it is.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What the service answers by.
pub struct Sources {
    /// By which credentials and tokens expire.
    pub clock: Clock,
    /// The node's pods.
    pub view: View,
    /// Who is calling.
    pub identify: Arc<dyn Identify>,
    /// What tokens are made with.
    pub token_key: TokenKey,
    /// How the agent stands with the servers.
    pub standing: Standings,
    /// Where those are counted who ask without a token.
    pub v1_users: V1Users,
    /// What is counted.
    pub metrics: MetadataMetrics,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// What all connections share.
struct Shared {
    settings: Settings,
    clock: Clock,
    view: View,
    identify: Arc<dyn Identify>,
    standing: Standings,
    v1_users: V1Users,
    metrics: MetadataMetrics,
    upstream: Upstream,
    tokens: Tokens,
    refusal_log: RefusalLog,
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
    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop, then answers what is in flight. Once it is `ready` all pods come
    /// here; before, those that an earlier agent does not serve.
    pub async fn run(self, ready: impl Future<Output = ()>, stop: CancellationToken) {
        let Self { listener, shared } = self;
        let open = TaskTracker::new();
        let mut ready = pin!(ready.fuse());
        // Connections may be on their way when the stop comes: nobody else would accept these. An
        // agent that has taken over gets all that begin now.
        let mut last = pin!(async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_COME).await;
        });
        let serve = |stream: TcpStream, peer| {
            let caller = shared.caller(&stream, peer);
            open.spawn(Arc::clone(&shared).serve(stream, caller, stop.clone()));
        };
        let mut look = pin!(tokio::time::sleep(Duration::ZERO));
        let mut pause = SECOND_LOOK;
        loop {
            let accepted = tokio::select! {
                () = &mut last => break,
                () = &mut look => {
                    if let Some(since) = accept_all(&listener, serve) {
                        shared.identify.none_waits(since);
                    }
                    look.as_mut().reset(Instant::now() + pause);
                    pause = LOOK;
                    continue;
                }
                () = &mut ready => {
                    if let Err(error) = listen::take_over(&listener) {
                        tracing::error!(%error, "cannot take over from an earlier agent");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => serve(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections of pods");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        open.close();
        open.wait().await;
    }
}

/// Accepts all that waits in the kernel's queue, and returns when there was nothing more; `None` if that
/// cannot be told. Tokio's own word on readiness may be older than the queue.
fn accept_all(listener: &TcpListener, serve: impl Fn(TcpStream, SocketAddr)) -> Option<Instant> {
    loop {
        let since = Instant::now();
        let (socket, peer) = match SockRef::from(listener).accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(since),
            // It failed for another reason than there being none, and is tried again soon.
            Err(_) => return None,
        };
        let stream = socket
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(socket.into()));
        // A connection that is gone already is nobody's.
        if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
            serve(stream, peer);
        }
    }
}

/// The port, taken before there is anybody who can tell callers apart.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
}

impl Listening {
    /// Takes the port, beside an earlier agent that is about to end. Connections wait in the kernel's queue until [`Metadata::run`].
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: listen::share(address)?,
        })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The service on this port.
    #[must_use]
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
            standing,
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
            standing,
            v1_users,
            metrics,
            tokens: Tokens::new(&token_key),
            refusal_log: RefusalLog::default(),
        }
    }
}
