//! Client of the node stream: one call to one server at a time, repeated until the agent stops.
//!
//! If there is no server, no DNS, or a certificate is rejected, the client tries again, with
//! another server first, and the view stays as it is. No failure of the stream ends the agent.
//!
//! ```text
//! servers            selection of the next address
//! dial               calls to a server
//! convert            conversion of messages to updates, with checks
//! error              reasons why a stream ended
//! connection_state   state of the connection, for the rest of the agent
//! metrics            metrics of the stream
//! ```

mod connection_state;
mod convert;
mod dial;
mod error;
mod metrics;
mod servers;

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

pub use connection_state::ConnectionState;
pub(crate) use connection_state::ConnectionStates;
pub(crate) use dial::TlsDial;
pub use dial::{Dial, DialError, Messages};
pub(crate) use error::StreamError;
pub use metrics::StreamMetrics;
pub use servers::Resolve;

use crate::view::{Projection, Update};
use connection_state::ConnectionStateSender;
use metrics::unix_now;
use servers::Servers;

/// Maximum number of updates that are applied before readers see them.
const MAX_BATCH: usize = 256;

/// Maximum number of failures that are remembered as logged.
const MAX_LOGGED: usize = 32;

/// Timeouts and retry intervals of the client.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Wait after the first failure.
    pub retry_first: Duration,
    /// Maximum wait between retries.
    pub retry_limit: Duration,
    /// Timeout of the resolver, and of the server's first answer.
    pub answer: Duration,
    /// Timeout of a stream to become synced.
    pub sync: Duration,
    /// Duration after which a synced stream resets the retry interval.
    pub settled: Duration,
    /// Random numbers in 0..1, for jitter.
    pub random: fn() -> f64,
}

impl Default for Timeouts {
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

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// `--server-address`, for messages.
    pub server: String,
    /// File with the token that proves the node's identity.
    pub token_file: Option<PathBuf>,
    /// True if redirection and guard are in effect on the node.
    pub guarded: bool,
    /// Timeouts and retry intervals.
    pub timeouts: Timeouts,
}

/// Client that keeps the view in sync with a server.
pub struct Client {
    settings: Settings,
    resolve: Box<dyn Resolve>,
    dial: Box<dyn Dial>,
    projection: Projection,
    metrics: StreamMetrics,
    connection: ConnectionStateSender,
    servers: Servers,
    backoff: Backoff,
    /// Failures that were logged since the last success, and are not logged again.
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
    /// Creates a client. `first_snapshot` is done when a stream is synced for the first time.
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
            backoff: Backoff::new(settings.timeouts.retry_first, settings.timeouts.retry_limit),
            settings,
            resolve,
            dial,
            projection,
            metrics,
            connection: ConnectionStateSender::default(),
            logged: BTreeSet::new(),
            first_snapshot: Some(first_snapshot),
        }
    }

    /// Returns a receiver of the connection's state.
    pub fn connection(&self) -> ConnectionStates {
        self.connection.readers()
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.run_stream() => ended,
            };
            self.metrics.ended(ended.reason());
            self.connection.broken(ended.to_string(), SystemTime::now());
            let wait = self.backoff.next((self.settings.timeouts.random)());
            self.log(&ended, wait);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Runs one stream from one server to its end.
    async fn run_stream(&mut self) -> StreamError {
        let address = match self.find().await {
            Ok(address) => address,
            Err(error) => return error,
        };
        let mut synced = None;
        let ended = match self.call(address).await {
            Ok(messages) => self.apply_all(address, messages, &mut synced).await,
            Err(error) => error,
        };
        if synced.is_some_and(|at: Instant| at.elapsed() >= self.settings.timeouts.settled) {
            self.backoff.reset();
        }
        if ended.is_failure() {
            self.servers.failed(address);
        }
        ended
    }

    async fn find(&mut self) -> Result<SocketAddr, StreamError> {
        let Timeouts { answer, .. } = self.settings.timeouts;
        let server = self.settings.server.clone();
        let failed = |problem| StreamError::Resolve { server, problem };
        let addresses = match timeout(answer, self.resolve.resolve()).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_elapsed) => return Err(failed("no answer from the resolver".into())),
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
            timeouts,
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
        match timeout(timeouts.answer, self.dial.watch(address, request)).await {
            Ok(Ok(messages)) => Ok(messages),
            Ok(Err(DialError::Connect(error))) => Err(error.into()),
            Ok(Err(DialError::Status(status))) => Err(StreamError::status(address, &status)),
            Err(_elapsed) => Err(StreamError::Silent {
                address,
                what: "answer",
                limit: timeouts.answer,
            }),
        }
    }

    async fn apply_all(
        &mut self,
        address: SocketAddr,
        messages: Messages,
        synced: &mut Option<Instant>,
    ) -> StreamError {
        let limit = self.settings.timeouts.sync;
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
                        let what = "send its complete state";
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

    /// Applies a message, and returns whether the stream is synced with it.
    fn apply(&mut self, message: api::WatchResponse) -> bool {
        let update = match convert::update(message) {
            Ok(update) => update,
            Err(convert::Unusable { why, about }) => {
                self.metrics.refused.with_label_values(&["malformed"]).inc();
                match about {
                    Some(uid) => {
                        tracing::error!(
                            pod.uid = %uid,
                            "cannot use a message of the server about a pod: {why}; the pod gets nothing"
                        );
                        return self.apply_update(Update::Removed(uid));
                    }
                    None => tracing::error!("cannot use a message of the server: {why}"),
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
        if let Err(error) = self.projection.apply(update) {
            let reason = error.reason();
            self.metrics.refused.with_label_values(&[reason]).inc();
            tracing::warn!(reason, "rejected an update of the server: {error}");
        }
        kind == "synced"
    }

    /// Records that the stream is synced, which ends all earlier failures.
    fn settle(&mut self, address: SocketAddr) {
        if self.metrics.synced.get() == 0 {
            self.metrics.synced.set(1);
            tracing::info!(server = %address, "received the pods of this node");
        }
        self.connection.synced(address, SystemTime::now());
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
            tracing::info!(reason, "{text}; reconnecting in {retry}");
        } else if self.logged.contains(&text) {
            tracing::debug!(reason, "repeated: {text}; retrying in {retry}");
        } else {
            tracing::warn!(reason, "{text}; retrying in {retry}");
            if self.logged.len() >= MAX_LOGGED {
                self.logged.clear();
            }
            self.logged.insert(text);
        }
    }
}

/// Returns the header with the token. The kubelet replaces the token long before it expires.
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
