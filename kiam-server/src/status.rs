//! `/status`: what this server knows and what fails, as JSON and as a page to read.
//!
//! No secret is on it: no access key id, no external id, no session tag. Its size is bounded: of
//! each list the entries that matter most, and how many there are in all.

mod pod;
mod render;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use kiam_common::admin::Page;
use kiam_common::page::{self, cut};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::credentials::{Snapshot, Store};
use crate::identity::Identity;
use crate::node::Streams;
use crate::policy::{Outcome, Settings, decide};

pub use pod::{PATH, PodStatus};

/// Entries of each list.
const MAX_LISTED: usize = 100;
/// Pods that are decided about for one answer: it must not keep the server from its work.
const MAX_DECIDED: usize = 20_000;

/// Where the state is read.
pub struct Status {
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
    /// Whether the whole cluster has been read.
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

/// The nodes whose agents have a stream open to this replica. Those without a guard come first.
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

/// The identities whose credentials are held. Those that fail come first, then those that expire
/// soonest.
#[derive(Debug, Serialize)]
struct Identities {
    held: usize,
    failing: usize,
    expired: usize,
    listed: Vec<Held>,
}

/// An identity's credentials, as they are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The role's ARN.
    pub role: String,
    /// The session's name.
    pub session_name: String,
    /// None without credentials.
    pub age_seconds: Option<u64>,
    /// Zero once they have expired.
    pub expires_in_seconds: Option<u64>,
    /// Why there are no newer ones.
    pub failure: Option<Failing>,
}

/// A failure of STS's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// As in `kiam_sts_errors_total`.
    pub kind: String,
    /// What STS said.
    pub error: String,
    /// When it is asked again.
    pub retry_in_seconds: u64,
}

/// The pods of attached nodes: who gets nothing, and why.
#[derive(Debug, Serialize)]
struct Pods {
    /// Fewer than there are if there are very many.
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
    /// Of these.
    #[must_use]
    pub fn new(
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

    /// `/status` as JSON, and `/status.html` to read.
    #[must_use]
    pub fn page(self) -> Page {
        Arc::new(move |asked| match asked.path {
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
            agent_version: cut(&agent.agent_version),
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
                .map(|(identity, snapshot)| Held::of(identity, snapshot, now))
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
        let members = nodes.iter().flat_map(|agent| {
            let members = self.cluster.node(agent.node.as_str());
            members
                .into_iter()
                .map(|member| (agent.node.as_str(), member))
        });
        for (node, member) in members.take(MAX_DECIDED) {
            pods.examined += 1;
            let reason = match decide(&member, &self.settings) {
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
                    format!("awaiting {awaiting}")
                }
            };
            if pods.listed.len() < MAX_LISTED {
                pods.listed.push(Refused {
                    namespace: cut(&member.pod.namespace),
                    name: cut(&member.pod.name),
                    node: node.to_owned(),
                    reason: cut(&reason),
                });
            }
        }
        pods
    }
}

impl Held {
    fn of(identity: &Identity, snapshot: &Snapshot, now: SystemTime) -> Self {
        let since = |earlier| now.duration_since(earlier).unwrap_or_default().as_secs();
        let until = |later: SystemTime| later.duration_since(now).unwrap_or_default().as_secs();
        let credentials = snapshot.credentials.as_ref();
        Self {
            role: cut(identity.role.as_str()),
            session_name: cut(&identity.session_name),
            age_seconds: credentials.map(|credentials| since(credentials.issued)),
            expires_in_seconds: credentials.map(|credentials| until(credentials.expiration)),
            failure: snapshot.failure.as_ref().map(|failure| Failing {
                kind: failure.error.kind.as_label().to_owned(),
                error: cut(&failure.error.message),
                retry_in_seconds: until(failure.retry_at),
            }),
        }
    }
}
