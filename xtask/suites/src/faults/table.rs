//! Table of the faults: what breaks, how it is restored, and the permitted effect.

mod agents;
mod api;
mod certificates;
mod changes;
mod clocks;
mod network;
mod resources;
mod servers;
mod sts;

use std::time::Duration;

use anyhow::Result;
use futures::future::LocalBoxFuture;

use super::fixture::Fixture;

/// Injects or lifts a fault.
pub(super) type Action = for<'a> fn(&'a mut Fixture) -> LocalBoxFuture<'a, Result<()>>;

/// Effect that running pods may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Nothing: each request is answered with the pod's credentials.
    Nothing,
    /// Failures until it has recovered, for this reason.
    Failures(&'static str),
}

/// Effect of a fault on new pods while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewPods {
    /// All new pods get credentials, as without a fault.
    Served,
    /// None of them.
    Starved,
    /// Unknown: no pod can be created.
    Either,
}

/// A fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) inject: Action,
    pub(super) lift: Action,
    pub(super) notice: Notice,
    pub(super) new_pods: NewPods,
    /// Limit from its end until new pods on all nodes have credentials.
    pub(super) recovery: Duration,
    /// Faults of a group do not run together: one would undo the other.
    pub(super) group: &'static str,
}

impl Fault {
    /// Returns a fault without effect on pods, which ends soon by itself.
    const fn new(name: &'static str, group: &'static str, inject: Action, lift: Action) -> Self {
        Self {
            name,
            inject,
            lift,
            notice: Notice::Nothing,
            new_pods: NewPods::Either,
            recovery: SOON,
            group,
        }
    }

    /// New pods get credentials while it lasts, too.
    const fn serves_new_pods(self) -> Self {
        Self {
            new_pods: NewPods::Served,
            ..self
        }
    }

    /// Expects that new pods get no credentials, which shows that the fault works.
    const fn starves_new_pods(self) -> Self {
        Self {
            new_pods: NewPods::Starved,
            ..self
        }
    }

    /// It takes up to as long until new pods have credentials.
    const fn recovers_within(self, recovery: Duration) -> Self {
        Self { recovery, ..self }
    }

    /// Pods of the part that breaks see failures.
    const fn fails(self, why: &'static str) -> Self {
        Self {
            notice: Notice::Failures(why),
            ..self
        }
    }
}

/// Recovery that takes no more than a connection, a snapshot and a call of STS.
const SOON: Duration = Duration::from_secs(10);
/// Behind connections that the kernel has to give up first.
const KEEPALIVE: Duration = Duration::from_secs(45);

const NO_AGENT: &str = "no agent runs on the node";
/// Agents wait up to 15 s between their attempts to connect, and then there are calls of STS.
const RECONNECT: Duration = Duration::from_secs(25);

/// All faults, in the order in which they run.
pub(super) fn all() -> Vec<Fault> {
    [
        servers::FAULTS,
        network::FAULTS,
        agents::FAULTS,
        api::FAULTS,
        sts::FAULTS,
        changes::FAULTS,
        certificates::FAULTS,
        clocks::FAULTS,
        resources::FAULTS,
    ]
    .concat()
}

/// Groups, in the order in which a pair injects its faults; it lifts them in reverse: a restart
/// needs certificates, servers and the API, and changes are made by the API.
const ORDER: [&str; 9] = [
    "agents",
    "resources",
    "changes",
    "clocks",
    "sts",
    "network",
    "servers",
    "certificates",
    "api",
];

impl Fault {
    /// Its place in a pair.
    pub(super) fn rank(&self) -> usize {
        let place = ORDER.iter().position(|group| *group == self.group);
        place.unwrap_or(ORDER.len())
    }
}

/// Does nothing: the fault ends by itself.
fn nothing(_world: &mut Fixture) -> LocalBoxFuture<'_, Result<()>> {
    Box::pin(async { Ok(()) })
}
