//! The metadata service that pods see: their own role's name and credentials, and nothing else.
//!
//! ```text
//! connection   one connection: who is it, its limits, its end
//! places       how many connections each pod may have
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

mod connection;
mod decide;
mod metrics;
mod passthrough;
pub mod path;
mod places;
mod refusal;
mod refusal_log;
mod sdk;
mod service;
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
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use metrics::MetadataMetrics;
pub use sdk::Sdk;
pub use v1_users::{V1Use, V1Users};

use crate::args::ImdsV2;
use crate::caller::{Identify, PodRef};
use crate::stream::Standings;
use crate::token_key::TokenKey;
use crate::view::View;
use passthrough::Upstream;
use places::Places;
use refusal_log::RefusalLog;
use tokens::Tokens;

/// Connections that are told that they are too many, at once; more are just closed.
const MAX_TURNED_AWAY: usize = 64;
/// How long the agent accepts connections when it is told to stop.
const LAST_COME: Duration = Duration::from_millis(100);
/// A wait for file descriptors to be closed by somebody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    /// Connections of all pods together; more are answered 503. None waits in the kernel's
    /// queue, as the kernel's word on who made it grows old there.
    pub max_connections: usize,
    /// Connections of one pod; more are answered 503.
    pub max_connections_per_pod: usize,
    /// From a connection's begin, or the end of its last answer, to a request's head being whole.
    pub header_timeout: Duration,
    /// The longest that a connection is kept open.
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
            max_connections: 2048,
            max_connections_per_pod: 64,
            header_timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(300),
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
    all_places: Semaphore,
    /// Those whom the kernel vouches for have places of their own; all others share one's.
    places: Arc<Places<Option<PodRef>>>,
    turned_away: Semaphore,
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
        loop {
            let accepted = tokio::select! {
                () = &mut last => break,
                () = &mut ready => {
                    if let Err(error) = listen::take_over(&listener) {
                        tracing::error!(%error, "cannot take over from an earlier agent");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let shared = Arc::clone(&shared);
                    open.spawn(shared.serve(stream, peer, stop.clone()));
                }
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
            places: Places::new(settings.max_connections_per_pod),
            all_places: Semaphore::new(settings.max_connections),
            turned_away: Semaphore::new(MAX_TURNED_AWAY),
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
