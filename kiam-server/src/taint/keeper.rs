//! Watches, plans, and acts.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Taint;
use super::api::{self, Change, NodeApi};
use super::state::State;
use crate::args::ServiceAccountName;
use crate::node::Streams;

/// What could not be done is tried again after this.
const RETRY: Duration = Duration::from_secs(15);
/// For so long the watch may take to tell of a change that was made here.
const ECHO: Duration = Duration::from_secs(5);
/// A call that takes longer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is counted about the taint.
#[derive(Debug, Clone)]
pub struct TaintMetrics(IntCounterVec);

impl TaintMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let changes = IntCounterVec::new(
            Opts::new(
                "kiam_node_taint_changes_total",
                "Changes of nodes' taint by this server, by action (removed, put_back) and result \
                 (ok, error).",
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

/// Keeps nodes' taints as their agents are.
#[derive(Debug)]
pub struct Keeper {
    api: NodeApi,
    taint: Taint,
    state: State,
    streams: Streams,
    metrics: TaintMetrics,
}

impl Keeper {
    /// Keeps `taint` through `client`: off nodes whose agents guard them by `streams`, and back on
    /// those whose agent's pod, of this service account, has been gone `after` so long.
    #[must_use]
    pub fn new(
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

    /// Works until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(mut self) {
        let (nodes, agents) = (self.api.nodes(), self.api.agents());
        let (mut nodes, mut agents) = (pin!(nodes), pin!(agents));
        let mut streams = self.streams.changes();
        let (mut nodes_listed, mut agents_listed) = (Listed::default(), Listed::default());
        let mut next = None;
        loop {
            let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                Some(event) = nodes.next() => self.node(event, &mut nodes_listed),
                Some(event) = agents.next() => self.agent(event, &mut agents_listed),
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
                // It is left as it is.
                Err(invalid) => {
                    let name = invalid.metadata.name.unwrap_or_default();
                    tracing::error!(node = ?name, "unusable Node: {}", invalid.error);
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
            Ok(Event::InitDone) => self.state.nodes_are(&listed.end()),
            Err(error) => broke("Node", &error),
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
                // What was known of it holds; before anything is done the API is asked again.
                Err(invalid) => {
                    tracing::error!(pod = ?invalid.metadata.name, "unusable Pod: {}", invalid.error);
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
            Ok(Event::InitDone) => self.state.agents_are(&listed.end()),
            Err(error) => broke("Pod", &error),
        }
    }

    /// Does what is to be done; returns when there is more, if nothing happens before.
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

    /// Returns for how long the node is left alone then.
    async fn change(&self, node: &str, on: bool) -> Duration {
        let changed = async {
            if on && self.api.has_agent(node).await? {
                return Ok(Change::Needless);
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
                    tracing::warn!(node, %taint, "put the taint back: the node has had no agent for long");
                } else {
                    tracing::info!(node, %taint, "removed the taint: the node is guarded");
                }
                ECHO
            }
            Ok(Ok(Change::Needless)) => ECHO,
            Ok(Err(error)) => {
                count("error");
                tracing::warn!(node, %taint, action, %error, "cannot change a node's taint; trying again");
                RETRY
            }
            Err(_elapsed) => {
                count("error");
                tracing::warn!(node, %taint, action, "the API does not answer; trying again");
                RETRY
            }
        }
    }
}

/// What a list has told so far.
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

    /// While nothing is listed there is nothing to remember.
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

fn broke(kind: &'static str, error: &watcher::Error) {
    tracing::warn!(kind, %error, "the watch for --node-taint broke; trying again");
}
