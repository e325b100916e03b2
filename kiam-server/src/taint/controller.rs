//! The controller: watches nodes and pods of agents, and changes the taint.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use kiam_common::metrics::Registry;
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use prometheus::{IntCounterVec, Opts};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Taint;
use super::api::{self, Change, NodeApi};
use super::state::State;
use crate::args::ServiceAccountName;
use crate::node::Streams;

/// The wait after a failed change.
const RETRY: Duration = Duration::from_secs(15);
/// The time for the watch to deliver a change of this server.
const WATCH_DELAY: Duration = Duration::from_secs(5);
/// The limit for one change.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics of the taint.
#[derive(Debug, Clone)]
pub(crate) struct TaintMetrics(IntCounterVec);

impl TaintMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let changes = IntCounterVec::new(
            Opts::new(
                "kiam_node_taint_changes_total",
                "Changes of the taint of nodes by this server, by action (removed, put_back) and \
                 result (ok, error).",
            ),
            &["action", "result"],
        )?;
        registry.register(Box::new(changes.clone()))?;
        for action in [REMOVED, PUT_BACK] {
            for result in ["ok", "error"] {
                changes.with_label_values(&[action, result]);
            }
        }
        Ok(Self(changes))
    }
}

const REMOVED: &str = "removed";
const PUT_BACK: &str = "put_back";

/// The controller of the taint.
#[derive(Debug)]
pub(crate) struct TaintController {
    api: NodeApi,
    taint: Taint,
    state: State,
    streams: Streams,
    metrics: TaintMetrics,
}

impl TaintController {
    /// Removes `taint` from nodes whose agents in `streams` guard them, and adds it to nodes that
    /// have had no pod of the service account `agents` for the time `after`.
    pub(crate) fn new(
        client: Client,
        (taint, after): (Taint, Duration),
        agents: &ServiceAccountName,
        streams: Streams,
        metrics: TaintMetrics,
    ) -> Self {
        Self {
            api: NodeApi::new(client, taint.clone(), agents),
            taint,
            state: State::new(after),
            streams,
            metrics,
        }
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.run_until_a_watch_ends() => {
                tracing::error!("a watch for --node-taint ended");
            }
        }
    }

    async fn run_until_a_watch_ends(mut self) {
        let (nodes, agents) = (self.api.nodes(), self.api.agents());
        let (mut nodes, mut agents) = (pin!(nodes), pin!(agents));
        let mut streams = self.streams.changes();
        let (mut nodes_listed, mut agents_listed) = (Listed::default(), Listed::default());
        let mut next = None;
        loop {
            let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                event = nodes.next() => match event {
                    Some(event) => self.node(event, &mut nodes_listed),
                    None => return,
                },
                event = agents.next() => match event {
                    Some(event) => self.agent(event, &mut agents_listed),
                    None => return,
                },
                Ok(()) = streams.changed() => {}
                () = tokio::time::sleep_until(until), if next.is_some() => {}
            }
            if nodes_listed.done && agents_listed.done {
                next = self.act().await;
            }
        }
    }

    fn node(
        &mut self,
        event: watcher::Result<Event<DeserializeGuard<api::NodeManifest>>>,
        listed: &mut Listed,
    ) {
        match event {
            Ok(Event::Init) => listed.begin(),
            Ok(Event::InitApply(node) | Event::Apply(node)) => match node.0 {
                Ok(node) => {
                    let name = node.metadata.name.as_deref().unwrap_or_default();
                    listed.add(name);
                    self.state.node(name, api::trim(&node, &self.taint));
                }
                // A malformed node is left unchanged.
                Err(invalid) => {
                    let name = invalid.metadata.name.unwrap_or_default();
                    tracing::error!(node = ?name, "ignoring an invalid Node: {}", invalid.error);
                    self.state.node_gone(&name);
                }
            },
            Ok(Event::Delete(node)) => {
                let name = match node.0 {
                    Ok(node) => node.metadata.name,
                    Err(invalid) => invalid.metadata.name,
                };
                self.state.node_gone(&name.unwrap_or_default());
            }
            Ok(Event::InitDone) => self.state.retain_nodes(&listed.end()),
            Err(error) => log_broken_watch("Node", &error),
        }
    }

    fn agent(
        &mut self,
        event: watcher::Result<Event<DeserializeGuard<api::AgentManifest>>>,
        listed: &mut Listed,
    ) {
        match event {
            Ok(Event::Init) => listed.begin(),
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => match pod.0 {
                Ok(pod) => {
                    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                    if let Some(node) = api::agent(&pod) {
                        listed.add(uid);
                        self.state.agent(uid, node);
                    } else {
                        self.state.agent_gone(uid);
                    }
                }
                // The previous state stays. The API is asked again before any change.
                Err(invalid) => {
                    tracing::error!(pod = ?invalid.metadata.name, "ignoring an invalid Pod: {}", invalid.error);
                    listed.add(invalid.metadata.uid.as_deref().unwrap_or_default());
                }
            },
            Ok(Event::Delete(pod)) => {
                let uid = match pod.0 {
                    Ok(pod) => pod.metadata.uid,
                    Err(invalid) => invalid.metadata.uid,
                };
                self.state.agent_gone(&uid.unwrap_or_default());
            }
            Ok(Event::InitDone) => self.state.retain_agents(&listed.end()),
            Err(error) => log_broken_watch("Pod", &error),
        }
    }

    /// Applies the due changes, and returns the time of the next one.
    async fn act(&mut self) -> Option<Instant> {
        let streams = self.streams.newest();
        let names = |guarded: bool| -> HashSet<String> {
            let streams = streams.iter().filter(|stream| stream.guarded || !guarded);
            streams.map(|stream| stream.node.to_string()).collect()
        };
        let (guarded, attached) = (names(true), names(false));
        let plan = self.state.plan(&guarded, &attached, Instant::now());
        let mut next = plan.next;
        let removals = plan.remove.into_iter().map(|name| (name, false));
        let additions = plan.put_back.into_iter().map(|name| (name, true));
        for (name, on) in removals.chain(additions) {
            let wait = self.change(&name, on).await;
            let until = Instant::now() + wait;
            self.state.defer(&name, until);
            next = Some(next.map_or(until, |next| next.min(until)));
        }
        next
    }

    /// Applies one change, and returns the time until the node may be changed again.
    async fn change(&self, node: &str, on: bool) -> Duration {
        let changed = async {
            if on && self.api.has_agent(node).await? {
                return Ok(Change::Unnecessary);
            }
            self.api.change(node, on).await
        };
        let changed = tokio::time::timeout(CALL_TIMEOUT, changed).await;
        let (action, taint) = (if on { PUT_BACK } else { REMOVED }, &self.taint);
        let count = |result| self.metrics.0.with_label_values(&[action, result]).inc();
        match changed {
            Ok(Ok(Change::Made)) => {
                count("ok");
                if on {
                    tracing::warn!(node, %taint, "added the taint: the node has no agent");
                } else {
                    tracing::info!(node, %taint, "removed the taint: the node is guarded");
                }
                WATCH_DELAY
            }
            Ok(Ok(Change::Unnecessary)) => WATCH_DELAY,
            Ok(Err(error)) => {
                count("error");
                tracing::warn!(node, %taint, action, %error, "cannot change the taint of a node; retrying");
                RETRY
            }
            Err(_elapsed) => {
                count("error");
                tracing::warn!(node, %taint, action, "cannot change the taint of a node: the API does not respond; retrying");
                RETRY
            }
        }
    }
}

/// The progress of a list.
#[derive(Debug, Default)]
struct Listed {
    names: HashSet<String>,
    done: bool,
    listing: bool,
}

impl Listed {
    fn begin(&mut self) {
        self.names.clear();
        self.listing = true;
    }

    /// Adds a name, while a list is in progress.
    fn add(&mut self, name: &str) {
        if self.listing {
            self.names.insert(name.to_owned());
        }
    }

    fn end(&mut self) -> HashSet<String> {
        self.done = true;
        self.listing = false;
        std::mem::take(&mut self.names)
    }
}

fn log_broken_watch(kind: &'static str, error: &watcher::Error) {
    tracing::warn!(kind, %error, "the watch for --node-taint broke; restarting it");
}
