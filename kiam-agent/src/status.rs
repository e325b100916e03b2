//! `/status`: the pods of this node with their roles, or the reasons why they get nothing; as JSON,
//! as HTML, and as text. It contains no secrets and no access key ids.

mod render;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use kiam_common::admin::{Page, PageRequest, loopback_only};
use kiam_common::page::{self, truncate};
use serde::{Deserialize, Serialize};

use crate::metadata::{V1Use, V1Users};
use crate::stream::{ConnectionState, ConnectionStates};
use crate::view::{Grant, Outcome, Pod, View};

pub(crate) use render::text;

/// Maximum number of listed pods, more than a node runs. Those that get nothing come first.
const MAX_LISTED: usize = 512;

/// Sources of the status.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) setting: Setting,
    pub(crate) view: View,
    pub(crate) connection: ConnectionStates,
    /// Clients that send no tokens.
    pub(crate) v1_users: V1Users,
    /// Serve other machines too.
    pub(crate) remote: bool,
}

/// Settings that are constant while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) version: String,
    pub(crate) node: String,
    /// `--redirect`.
    pub(crate) redirect: String,
    /// `--guard`.
    pub(crate) guard: String,
    /// `--host-network-pods`, if these are redirected.
    pub(crate) host_network_pods: String,
    /// `--imds-v2`.
    pub(crate) imds_v2: String,
}

/// The status at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) setting: Setting,
    pub(crate) server: Server,
    pub(crate) pods: Pods,
}

/// State of the connection to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Server {
    #[serde(rename = "begun")]
    Starting,
    Synced {
        address: String,
        seconds: u64,
    },
    /// The agent works with the last known state.
    #[serde(rename = "broken")]
    Disconnected {
        problem: String,
        seconds: u64,
    },
}

/// Summary and list of the node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pods {
    pub(crate) known: usize,
    /// Pods with valid credentials.
    pub(crate) served: usize,
    pub(crate) without_role: usize,
    /// All other pods.
    pub(crate) unserved: usize,
    /// Up to [`MAX_LISTED`] pods; those that get nothing first.
    pub(crate) listed: Vec<Line>,
}

/// A pod in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The granted or annotated role.
    pub(crate) role: Option<String>,
    pub(crate) state: State,
    /// Reason why it gets nothing, or the last failure.
    pub(crate) why: Option<String>,
    /// Time until its credentials expire.
    pub(crate) expires_in_seconds: Option<u64>,
    /// Requests without a token of IMDSv2, by client.
    pub(crate) imds_v1: Vec<V1Line>,
}

/// Outcome of a pod's requests, in the order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// A policy refuses its role.
    Forbidden,
    /// Its role is granted, but there are no valid credentials.
    Failing,
    /// The outcome is not decided yet.
    Undecided,
    /// It gets credentials.
    Served,
    /// It has no role.
    NoRole,
}

/// Number of requests of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct V1Line {
    pub(crate) sdk: String,
    /// Number of requests since the agent started.
    pub(crate) requests: u64,
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
    /// Returns the pages `/status` (JSON) and `/status.html`.
    pub(crate) fn page(self) -> Page {
        std::sync::Arc::new(move |PageRequest { path, local }| {
            if !matches!(path, "/status" | "/status.html") {
                return None;
            }
            if !local && !self.remote {
                return Some(loopback_only(path));
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
            server: Server::of(&self.connection.borrow(), now),
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
    fn of(connection: &ConnectionState, now: SystemTime) -> Self {
        let seconds = |since| now.duration_since(since).unwrap_or_default().as_secs();
        match connection {
            ConnectionState::Starting => Self::Starting,
            ConnectionState::Synced { server, since } => Self::Synced {
                address: server.to_string(),
                seconds: seconds(*since),
            },
            ConnectionState::Disconnected { why, since } => Self::Disconnected {
                problem: truncate(why),
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
            Outcome::Forbidden { role, reason } => (
                Some(truncate(role)),
                State::Forbidden,
                Some(truncate(reason)),
            ),
            Outcome::Undecided { awaiting } => {
                let why = format!("awaiting {}", truncate(awaiting));
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
    let failure = grant
        .failure
        .as_ref()
        .map(|failure| truncate(&failure.error));
    let (state, why) = match (grant.valid(now), &grant.issued) {
        (Some(_), _) => (State::Served, failure),
        (None, Some(_)) => {
            let why = failure.unwrap_or_else(|| "no new credentials received".to_owned());
            (State::Failing, Some(format!("credentials expired: {why}")))
        }
        (None, None) => {
            let why = failure.unwrap_or_else(|| "waiting for credentials".to_owned());
            (State::Failing, Some(why))
        }
    };
    (Some(grant.role.to_string()), state, why)
}
