//! `/status`: who is on this node, which role each pod has, or why it gets nothing; as JSON, as a
//! page, and on the terminal. No secret is on it, and no access key id.

mod render;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use kiam_common::admin::{Asked, Page, only_local};
use kiam_common::page::{self, cut};
use serde::{Deserialize, Serialize};

use crate::metadata::{V1Use, V1Users};
use crate::stream::{Standing, Standings};
use crate::view::{Grant, Outcome, Pod, View};

pub use render::text;

/// Pods that are listed; more than a node runs. Those that get nothing come first.
const MAX_LISTED: usize = 512;

/// Where the state is read.
#[derive(Debug)]
pub struct Status {
    /// What does not change while the agent runs.
    pub setting: Setting,
    /// The node's pods.
    pub view: View,
    /// How the agent stands with the servers.
    pub standing: Standings,
    /// Who asks without a token.
    pub v1_users: V1Users,
    /// Whether other machines are told.
    pub remote: bool,
}

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The agent's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// How connections are brought to the agent: `--redirect`.
    pub redirect: String,
    /// What guards the node: `--guard`.
    pub guard: String,
    /// `--host-network-pods`, where that is the agent's to say.
    pub host_network_pods: String,
    /// `--imds-v2`.
    pub imds_v2: String,
}

/// The state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What does not change.
    #[serde(flatten)]
    pub setting: Setting,
    /// How it stands with the servers.
    pub server: Server,
    /// The node's pods.
    pub pods: Pods,
}

/// How the agent stands with the servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Server {
    /// It has just started.
    Begun,
    /// A server keeps it informed.
    Synced {
        /// Which.
        address: String,
        /// For how long.
        seconds: u64,
    },
    /// It lives on what it knows.
    Broken {
        /// Why.
        problem: String,
        /// For how long.
        seconds: u64,
    },
}

/// The node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pods {
    /// How many there are.
    pub known: usize,
    /// With credentials that are good.
    pub served: usize,
    /// That have no role.
    pub without_role: usize,
    /// All others.
    pub unserved: usize,
    /// Those that get nothing first; not all, if there are very many.
    pub listed: Vec<Line>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Its role, as granted or as asked for.
    pub role: Option<String>,
    /// What becomes of its requests.
    pub state: State,
    /// Why it gets nothing, or what fails.
    pub why: Option<String>,
    /// Until its credentials expire.
    pub expires_in_seconds: Option<u64>,
    /// Requests without a token of IMDSv2, by client.
    pub imds_v1: Vec<V1Line>,
}

/// What becomes of a pod's requests. In the order in which pods are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A policy refuses its role.
    Forbidden,
    /// Its role is granted, and there are no credentials that are good.
    Failing,
    /// Nothing is decided.
    Undecided,
    /// It gets its credentials.
    Served,
    /// It has no role.
    NoRole,
}

/// Requests of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Line {
    /// The family of clients.
    pub sdk: String,
    /// How many since the agent started.
    pub requests: u64,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forbidden => "forbidden",
            Self::Failing => "failing",
            Self::Undecided => "undecided",
            Self::Served => "served",
            Self::NoRole => "no role",
        })
    }
}

impl Status {
    /// `/status` as JSON, and `/status.html` to read.
    #[must_use]
    pub fn page(self) -> Page {
        std::sync::Arc::new(move |Asked { path, local }| {
            if !matches!(path, "/status" | "/status.html") {
                return None;
            }
            if !local && !self.remote {
                return Some(only_local(path));
            }
            let report = self.report(SystemTime::now());
            Some(match path {
                "/status" => page::json(&report),
                _ => page::html(render::document(&report)),
            })
        })
    }

    fn report(&self, now: SystemTime) -> Report {
        Report {
            setting: self.setting.clone(),
            server: Server::of(&self.standing.borrow(), now),
            pods: self.pods(now),
        }
    }

    fn pods(&self, now: SystemTime) -> Pods {
        let snapshot = self.view.load();
        let mut users = self.v1_users.of(&snapshot);
        let mut lines: Vec<_> = snapshot
            .pods()
            .map(|pod| Line::of(pod, &mut users, now))
            .collect();
        let count = |state| lines.iter().filter(|line| line.state == state).count();
        let (known, served, without_role) =
            (lines.len(), count(State::Served), count(State::NoRole));
        lines.sort_by(|a, b| {
            (a.state, &a.namespace, &a.name).cmp(&(b.state, &b.namespace, &b.name))
        });
        lines.truncate(MAX_LISTED);
        Pods {
            known,
            served,
            without_role,
            unserved: known - served - without_role,
            listed: lines,
        }
    }
}

impl Server {
    fn of(standing: &Standing, now: SystemTime) -> Self {
        let seconds = |since| now.duration_since(since).unwrap_or_default().as_secs();
        match standing {
            Standing::Begun => Self::Begun,
            Standing::Synced { server, since } => Self::Synced {
                address: server.to_string(),
                seconds: seconds(*since),
            },
            Standing::Broken { why, since } => Self::Broken {
                problem: cut(why),
                seconds: seconds(*since),
            },
        }
    }
}

impl Line {
    fn of(
        pod: &Pod,
        users: &mut HashMap<(Box<str>, Box<str>), Vec<V1Use>>,
        now: SystemTime,
    ) -> Self {
        let key = (pod.facts.namespace.clone(), pod.facts.name.clone());
        let uses = users.remove(&key).unwrap_or_default();
        let (role, state, why) = match &pod.outcome {
            Outcome::NoRole => (None, State::NoRole, None),
            Outcome::Forbidden { role, reason } => {
                (Some(cut(role)), State::Forbidden, Some(cut(reason)))
            }
            Outcome::Undecided { awaiting } => {
                let why = format!("awaiting {}", cut(awaiting));
                (None, State::Undecided, Some(why))
            }
            Outcome::Granted(grant) => granted(grant, now),
        };
        let issued = match &pod.outcome {
            Outcome::Granted(grant) => grant.issued.as_ref(),
            _ => None,
        };
        Self {
            namespace: pod.facts.namespace.to_string(),
            name: pod.facts.name.to_string(),
            role,
            state,
            why,
            expires_in_seconds: issued.map(|issued| {
                let left = issued.expiration().duration_since(now);
                left.unwrap_or_default().as_secs()
            }),
            imds_v1: uses
                .into_iter()
                .map(|V1Use { sdk, requests }| V1Line {
                    sdk: sdk.as_label().to_owned(),
                    requests,
                })
                .collect(),
        }
    }
}

fn granted(grant: &Grant, now: SystemTime) -> (Option<String>, State, Option<String>) {
    let failure = grant.failure.as_ref().map(|failure| cut(&failure.error));
    let (state, why) = match (grant.valid(now), &grant.issued) {
        (Some(_), _) => (State::Served, failure),
        (None, Some(_)) => {
            let why = failure.unwrap_or_else(|| "newer ones have not come".to_owned());
            (State::Failing, Some(format!("credentials expired: {why}")))
        }
        (None, None) => {
            let why = failure.unwrap_or_else(|| "credentials are on their way".to_owned());
            (State::Failing, Some(why))
        }
    };
    (Some(grant.role.to_string()), state, why)
}
