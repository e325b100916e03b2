//! `/status`: the state and the failures of this server, as JSON and as HTML.
//!
//! It contains no secrets: no access key IDs, external IDs or session tags. Its size is bounded:
//! each list has the most important entries, and the total number.

mod pod;
mod render;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use kiam_common::admin::Page;
use kiam_common::page::{self, truncate};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::credentials::{Snapshot, Store};
use crate::identity::Identity;
use crate::node::Streams;
use crate::policy::{Outcome, Settings, decide};

pub(crate) use pod::{PATH, PodStatus};

/// The limit for the entries of each list.
const MAX_LISTED: usize = 100;
/// The limit for decisions per response, which must not delay other work of the server.
const MAX_DECIDED: usize = 20_000;

/// The sources of the report.
pub(crate) struct Status {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    settings: Arc<Settings>,
    streams: Streams,
    clock: Arc<dyn Clock>,
}

/// The state at one moment.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// True once the server has read the whole cluster.
    synced: bool,
    objects: Vec<Objects>,
    nodes: Nodes,
    identities: Identities,
    pods: Pods,
}

#[derive(Debug, Serialize)]
struct Objects {
    kind: &'static str,
    known: usize,
}

/// The nodes whose agents are connected to this replica. Unguarded nodes come first.
#[derive(Debug, Serialize)]
struct Nodes {
    attached: usize,
    unguarded: usize,
    listed: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Node {
    node: String,
    agent_version: String,
    guarded: bool,
    stream_age_seconds: u64,
}

/// The identities whose credentials are held. Failing ones come first, then those that expire
/// first.
#[derive(Debug, Serialize)]
struct Identities {
    held: usize,
    failing: usize,
    expired: usize,
    listed: Vec<HeldCredentials>,
}

/// The credentials of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldCredentials {
    /// The ARN of the role.
    pub role: String,
    pub session_name: String,
    /// `None` without credentials.
    pub age_seconds: Option<u64>,
    /// Zero after the expiration.
    pub expires_in_seconds: Option<u64>,
    /// The failure of the last STS call.
    pub failure: Option<StsFailure>,
}

/// A failed STS call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StsFailure {
    /// The label `kind` of `kiam_sts_errors_total`.
    pub kind: String,
    /// The message of STS.
    pub error: String,
    /// The time until the next attempt.
    pub retry_in_seconds: u64,
}

/// The pods of connected nodes, and why some of them get no credentials.
#[derive(Debug, Serialize)]
struct Pods {
    /// The number of pods, up to [`MAX_DECIDED`].
    examined: usize,
    granted: usize,
    without_role: usize,
    forbidden: usize,
    undecided: usize,
    /// The first of those that are forbidden or undecided.
    listed: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Refused {
    namespace: String,
    name: String,
    node: String,
    reason: String,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").finish_non_exhaustive()
    }
}

impl Status {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        store: Arc<Store>,
        settings: Arc<Settings>,
        streams: Streams,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            cluster,
            store,
            settings,
            streams,
            clock,
        }
    }

    /// Returns the page for `/status` (JSON), `/status.html`, and `/status/pods/UID` (JSON).
    pub(crate) fn page(self) -> Page {
        Arc::new(move |request| match request.path {
            "/status" => Some(page::json(&self.report())),
            "/status.html" => Some(page::html(render::render(&self.report()))),
            path => {
                let uid = path.strip_prefix(PATH)?;
                Some(page::json(&self.pod(uid)?))
            }
        })
    }

    fn report(&self) -> Report {
        let objects = self.cluster.counts().into_iter();
        let objects = objects.map(|(kind, known)| Objects {
            kind: kind.as_str(),
            known,
        });
        Report {
            version: env!("CARGO_PKG_VERSION"),
            synced: self.cluster.is_synced(),
            objects: objects.collect(),
            nodes: self.nodes(),
            identities: self.identities(),
            pods: self.pods(),
        }
    }

    fn nodes(&self) -> Nodes {
        let mut nodes = self.streams.newest();
        nodes.sort_by(|a, b| (a.guarded, a.node.as_str()).cmp(&(b.guarded, b.node.as_str())));
        let listed = nodes.iter().take(MAX_LISTED).map(|agent| Node {
            node: agent.node.to_string(),
            agent_version: truncate(&agent.agent_version),
            guarded: agent.guarded,
            stream_age_seconds: agent.since.elapsed().as_secs(),
        });
        Nodes {
            attached: nodes.len(),
            unguarded: nodes.iter().filter(|agent| !agent.guarded).count(),
            listed: listed.collect(),
        }
    }

    fn identities(&self) -> Identities {
        let now = self.clock.now();
        let mut held = self.store.snapshots();
        let expiration = |snapshot: &Snapshot| {
            let credentials = snapshot.credentials.as_ref();
            credentials.map(|credentials| credentials.expiration)
        };
        held.sort_by_cached_key(|(identity, snapshot)| {
            (
                snapshot.failure.is_none(),
                expiration(snapshot),
                identity.role.to_string(),
            )
        });
        let expired =
            |(_, snapshot): &&(_, Snapshot)| expiration(snapshot).is_some_and(|at| at <= now);
        let failing = |(_, snapshot): &&(_, Snapshot)| snapshot.failure.is_some();
        Identities {
            held: held.len(),
            failing: held.iter().filter(failing).count(),
            expired: held.iter().filter(expired).count(),
            listed: held
                .iter()
                .take(MAX_LISTED)
                .map(|(identity, snapshot)| HeldCredentials::of(identity, snapshot, now))
                .collect(),
        }
    }

    fn pods(&self) -> Pods {
        let mut pods = Pods {
            examined: 0,
            granted: 0,
            without_role: 0,
            forbidden: 0,
            undecided: 0,
            listed: Vec::new(),
        };
        let mut nodes = self.streams.newest();
        nodes.sort_by(|a, b| a.node.as_str().cmp(b.node.as_str()));
        let contexts = nodes.iter().flat_map(|agent| {
            let contexts = self.cluster.node(agent.node.as_str());
            contexts
                .into_iter()
                .map(|context| (agent.node.as_str(), context))
        });
        for (node, context) in contexts.take(MAX_DECIDED) {
            pods.examined += 1;
            let reason = match decide(&context, &self.settings) {
                Outcome::Granted(_) => {
                    pods.granted += 1;
                    continue;
                }
                Outcome::NoRole => {
                    pods.without_role += 1;
                    continue;
                }
                Outcome::Forbidden { reason, .. } => {
                    pods.forbidden += 1;
                    reason
                }
                Outcome::Undecided { awaiting } => {
                    pods.undecided += 1;
                    format!("awaiting {awaiting}").into()
                }
            };
            if pods.listed.len() < MAX_LISTED {
                pods.listed.push(Refused {
                    namespace: truncate(&context.pod.namespace),
                    name: truncate(&context.pod.name),
                    node: node.to_owned(),
                    reason: truncate(&reason),
                });
            }
        }
        pods
    }
}

impl HeldCredentials {
    fn of(identity: &Identity, snapshot: &Snapshot, now: SystemTime) -> Self {
        let since = |earlier| now.duration_since(earlier).unwrap_or_default().as_secs();
        let until = |later: SystemTime| later.duration_since(now).unwrap_or_default().as_secs();
        let credentials = snapshot.credentials.as_ref();
        Self {
            role: truncate(identity.role.as_str()),
            session_name: truncate(&identity.session_name),
            age_seconds: credentials.map(|credentials| since(credentials.issued)),
            expires_in_seconds: credentials.map(|credentials| until(credentials.expiration)),
            failure: snapshot.failure.as_ref().map(|failure| StsFailure {
                kind: failure.error.kind.as_label().to_owned(),
                error: truncate(&failure.error.message),
                retry_in_seconds: until(failure.retry_at),
            }),
        }
    }
}
