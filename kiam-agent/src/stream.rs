//! The agent's end of the node stream: one call to one server, for ever.
//!
//! No server, no DNS, a refused certificate: the stream is tried again, at another server first,
//! and the view stays as it was. Nothing here ends the agent.
//!
//! ```text
//! servers   which address to try next
//! dial      how a server is called
//! convert   from the wire to the view, checked
//! error     what is at fault, in words
//! standing  how the agent stands with the servers
//! metrics   what is counted
//! ```

mod convert;
mod dial;
mod error;
mod metrics;
mod servers;
mod standing;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use kiam_common::api::node::v1 as api;
use kiam_common::backoff::Backoff;
use kiam_common::readiness::Awaited;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

pub use convert::Malformed;
pub use dial::{Dial, DialError, Messages, TlsDial};
pub use error::StreamError;
pub use metrics::StreamMetrics;
pub use servers::Resolve;
pub use standing::{Standing, Standings};

use crate::view::{Projection, Update};
use metrics::unix_now;
use servers::Servers;
use standing::Teller;

/// Updates that are taken in before readers see them, when so many have come at once.
const MAX_BATCH: usize = 256;

/// Different failures that are remembered as logged.
const MAX_LOGGED: usize = 32;

/// How patient the client is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The first wait after a failure.
    pub retry_first: Duration,
    /// The longest wait after failures.
    pub retry_limit: Duration,
    /// For the resolver, and for the server's first answer.
    pub answer: Duration,
    /// From the stream's begin to its being synced.
    pub sync: Duration,
    /// A stream that was synced for this long was a success.
    pub settled: Duration,
    /// Gives numbers in 0..1, for jitter.
    pub random: fn() -> f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_millis(100),
            retry_limit: Duration::from_secs(15),
            answer: Duration::from_secs(10),
            sync: Duration::from_secs(30),
            settled: Duration::from_secs(10),
            random: rand::random::<f64>,
        }
    }
}

/// What the client says of itself, and whom it talks to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// `--server-address`, for messages.
    pub server: String,
    /// The file with the token that proves the node, if one is used.
    pub token_file: Option<PathBuf>,
    /// Whether redirect and guard are in place on the node.
    pub guarded: bool,
    /// How patient the client is.
    pub pace: Pace,
}

/// Keeps the view as the server tells it.
pub struct Client {
    settings: Settings,
    resolve: Box<dyn Resolve>,
    dial: Box<dyn Dial>,
    projection: Projection,
    metrics: StreamMetrics,
    standing: Teller,
    servers: Servers,
    backoff: Backoff,
    /// The failures that were logged since the last success: what repeats itself is no news.
    logged: BTreeSet<String>,
    first_snapshot: Option<Awaited>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that has not called yet. `first_snapshot` ends when the first stream is synced.
    #[must_use]
    pub fn new(
        settings: Settings,
        resolve: Box<dyn Resolve>,
        dial: Box<dyn Dial>,
        projection: Projection,
        metrics: StreamMetrics,
        first_snapshot: Awaited,
    ) -> Self {
        Self {
            servers: Servers::new(settings.node.clone()),
            backoff: Backoff::new(settings.pace.retry_first, settings.pace.retry_limit),
            settings,
            resolve,
            dial,
            projection,
            metrics,
            standing: Teller::default(),
            logged: BTreeSet::new(),
            first_snapshot: Some(first_snapshot),
        }
    }

    /// How the agent stands with the servers, now and later.
    #[must_use]
    pub fn standing(&self) -> Standings {
        self.standing.readers()
    }

    /// Follows the servers until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow() => ended,
            };
            self.metrics.ended(ended.reason());
            self.standing.broken(ended.to_string(), SystemTime::now());
            let wait = self.backoff.next((self.settings.pace.random)());
            self.log(&ended, wait);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One stream of one server, from finding it to its end.
    async fn follow(&mut self) -> StreamError {
        let address = match self.find().await {
            Ok(address) => address,
            Err(error) => return error,
        };
        let mut synced = None;
        let ended = match self.call(address).await {
            Ok(messages) => self.take_in(address, messages, &mut synced).await,
            Err(error) => error,
        };
        if synced.is_some_and(|at: Instant| at.elapsed() >= self.settings.pace.settled) {
            self.backoff.reset();
        }
        if ended.is_failure() {
            self.servers.failed(address);
        }
        ended
    }

    async fn find(&mut self) -> Result<SocketAddr, StreamError> {
        let Pace { answer, .. } = self.settings.pace;
        let server = self.settings.server.clone();
        let failed = |problem| StreamError::Resolve { server, problem };
        let addresses = match timeout(answer, self.resolve.resolve()).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_elapsed) => return Err(failed("the resolver does not answer".into())),
        };
        self.servers
            .choose(&addresses)
            .ok_or_else(|| failed("the name has no address".into()))
    }

    async fn call(&self, address: SocketAddr) -> Result<Messages, StreamError> {
        let Settings {
            node,
            token_file,
            guarded,
            pace,
            ..
        } = &self.settings;
        let mut request = Request::new(api::WatchRequest {
            node: node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            guarded: *guarded,
        });
        if let Some(path) = token_file {
            request
                .metadata_mut()
                .insert("authorization", bearer(path)?);
        }
        match timeout(pace.answer, self.dial.watch(address, request)).await {
            Ok(Ok(messages)) => Ok(messages),
            Ok(Err(DialError::Connect(error))) => Err(error.into()),
            Ok(Err(DialError::Status(status))) => Err(StreamError::status(address, &status)),
            Err(_elapsed) => Err(StreamError::Silent {
                address,
                what: "answered",
                limit: pace.answer,
            }),
        }
    }

    async fn take_in(
        &mut self,
        address: SocketAddr,
        messages: Messages,
        synced: &mut Option<Instant>,
    ) -> StreamError {
        let limit = self.settings.pace.sync;
        let deadline = Instant::now() + limit;
        let mut batches = messages.ready_chunks(MAX_BATCH);
        self.projection.begin();
        self.metrics.began.set(unix_now());
        loop {
            let next = if synced.is_some() {
                batches.next().await
            } else {
                match timeout_at(deadline, batches.next()).await {
                    Ok(next) => next,
                    Err(_elapsed) => {
                        let what = "told all that it knows";
                        return StreamError::Silent {
                            address,
                            what,
                            limit,
                        };
                    }
                }
            };
            let Some(batch) = next else {
                return StreamError::Ended { address };
            };
            self.metrics.last_update.set(unix_now());
            let mut broken = None;
            for message in batch {
                match message {
                    Ok(message) => {
                        if self.apply(message) && synced.is_none() {
                            *synced = Some(Instant::now());
                        }
                    }
                    Err(status) => broken = Some(StreamError::status(address, &status)),
                }
            }
            self.projection.publish();
            if synced.is_some() {
                self.settle(address);
            }
            if let Some(error) = broken {
                return error;
            }
        }
    }

    /// Takes in one message; whether the stream is synced with it.
    fn apply(&mut self, message: api::WatchResponse) -> bool {
        let update = match convert::update(message) {
            Ok(update) => update,
            Err(convert::Unusable { why, about }) => {
                self.metrics.refused.with_label_values(&["malformed"]).inc();
                match about {
                    Some(uid) => {
                        tracing::error!(
                            pod.uid = %uid,
                            "the server's word on a pod cannot be used: {why}; the pod gets nothing"
                        );
                        return self.apply_update(Update::Removed(uid));
                    }
                    None => tracing::error!("a message of the server cannot be used: {why}"),
                }
                return false;
            }
        };
        self.apply_update(update)
    }

    fn apply_update(&mut self, update: Update) -> bool {
        let kind = match &update {
            Update::Applied(..) => "pod_applied",
            Update::Removed(..) => "pod_removed",
            Update::Issued { .. } => "credentials_issued",
            Update::Failed { .. } => "credentials_failed",
            Update::Synced => "synced",
        };
        self.metrics.updates.with_label_values(&[kind]).inc();
        if let Err(refused) = self.projection.apply(update) {
            let reason = refused.reason();
            self.metrics.refused.with_label_values(&[reason]).inc();
            tracing::warn!(reason, "an update of the server is not used: {refused}");
        }
        kind == "synced"
    }

    /// The stream is synced: what failed before is over.
    fn settle(&mut self, address: SocketAddr) {
        if self.metrics.synced.get() == 0 {
            self.metrics.synced.set(1);
            tracing::info!(server = %address, "the node's pods are known");
        }
        self.standing.synced(address, SystemTime::now());
        self.servers.succeeded();
        self.logged.clear();
        if let Some(awaited) = self.first_snapshot.take() {
            awaited.done();
        }
    }

    fn log(&mut self, ended: &StreamError, wait: Duration) {
        let reason = ended.reason();
        let text = ended.to_string();
        let retry = kiam_common::duration::format(wait);
        if !ended.is_failure() {
            tracing::info!(reason, "{text}; connecting again in {retry}");
        } else if self.logged.contains(&text) {
            tracing::debug!(reason, "still: {text}; trying again in {retry}");
        } else {
            tracing::warn!(reason, "{text}; trying again in {retry}");
            if self.logged.len() >= MAX_LOGGED {
                self.logged.clear();
            }
            self.logged.insert(text);
        }
    }
}

/// The header that proves the node. The kubelet replaces the token long before it expires.
fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, StreamError> {
    let text = std::fs::read_to_string(path).map_err(|source| StreamError::Token {
        path: path.to_owned(),
        source,
    })?;
    let no_token = || StreamError::NoToken {
        path: path.to_owned(),
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(no_token());
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_invalid| no_token())?;
    value.set_sensitive(true);
    Ok(value)
}
