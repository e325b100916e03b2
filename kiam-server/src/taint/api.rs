//! The Kubernetes API: watches of nodes and of pods of agents, and the patch of a node.

use std::fmt;

use futures::Stream;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod as ApiPod, Taint as ApiTaint};
use kube::Client;
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams};
use kube::core::{DeserializeGuard, Object as Shaped};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::Deserialize;
use serde_json::json;

use super::state::Node;
use super::{GUARDED, Taint};
use crate::args::ServiceAccountName;

/// Objects per page of a list.
const PAGE_SIZE: u32 = 500;

/// A node, reduced to the fields that are parsed.
pub(super) type NodeManifest = Shaped<NodeSpec, Unread>;
/// The pod of an agent, reduced to the fields that are parsed.
pub(super) type AgentManifest = Shaped<AgentSpec, AgentStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NodeSpec {
    #[serde(default)]
    taints: Vec<ApiTaint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Unread {}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AgentSpec {
    node_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AgentStatus {
    phase: Option<String>,
}

/// Access to nodes and pods of agents.
pub(super) struct NodeApi {
    nodes: Api<DeserializeGuard<NodeManifest>>,
    patched: Api<NodeManifest>,
    agents: Api<DeserializeGuard<AgentManifest>>,
    account: String,
    taint: Taint,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Made,
    /// The node no longer needs the change.
    Unnecessary,
}

impl fmt::Debug for NodeApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeApi").finish_non_exhaustive()
    }
}

impl NodeApi {
    pub(super) fn new(client: Client, taint: Taint, agents: &ServiceAccountName) -> Self {
        let node = ApiResource::erase::<ApiNode>(&());
        let pod = ApiResource::erase::<ApiPod>(&());
        Self {
            nodes: Api::all_with(client.clone(), &node),
            patched: Api::all_with(client.clone(), &node),
            agents: Api::namespaced_with(client, &agents.namespace, &pod),
            account: format!("spec.serviceAccountName={}", agents.name),
            taint,
        }
    }

    /// Watches nodes.
    pub(super) fn nodes(
        &self,
    ) -> impl Stream<Item = watcher::Result<Event<DeserializeGuard<NodeManifest>>>> + Send + 'static
    {
        let config = watcher::Config::default().page_size(PAGE_SIZE);
        watcher::watcher(self.nodes.clone(), config).default_backoff()
    }

    /// Watches the pods of agents.
    pub(super) fn agents(
        &self,
    ) -> impl Stream<Item = watcher::Result<Event<DeserializeGuard<AgentManifest>>>> + Send + 'static
    {
        let config = watcher::Config::default()
            .fields(&self.account)
            .page_size(PAGE_SIZE);
        watcher::watcher(self.agents.clone(), config).default_backoff()
    }

    /// Returns whether a node has a pod of an agent, by a list rather than by the watch, which may
    /// lag.
    pub(super) async fn has_agent(&self, node: &str) -> kube::Result<bool> {
        let fields = format!("{},spec.nodeName={node}", self.account);
        let pods = self
            .agents
            .list(&ListParams::default().fields(&fields))
            .await?;
        // A malformed pod counts as running.
        let running = |pod: &DeserializeGuard<AgentManifest>| {
            pod.0.as_ref().map_or(true, |pod| agent(pod).is_some())
        };
        Ok(pods.items.iter().any(running))
    }

    /// Adds the taint to a node, or removes it and annotates the node.
    pub(super) async fn change(&self, name: &str, on: bool) -> kube::Result<Change> {
        let node = self.patched.get(name).await?;
        let Node {
            tainted, leaving, ..
        } = trim(&node, &self.taint);
        if tainted == on || leaving {
            return Ok(Change::Unnecessary);
        }
        let mut taints = node.spec.taints;
        taints.retain(|taint| !matches(taint, &self.taint));
        if on {
            taints.push(ApiTaint {
                key: self.taint.key.clone(),
                effect: self.taint.effect.as_str().to_owned(),
                ..ApiTaint::default()
            });
        }
        // The patch replaces the whole list: the resource version makes it fail on a conflict.
        let metadata = if on {
            json!({ "resourceVersion": node.metadata.resource_version })
        } else {
            json!({
                "resourceVersion": node.metadata.resource_version,
                "annotations": { GUARDED: "true" },
            })
        };
        let patch = json!({ "metadata": metadata, "spec": { "taints": taints } });
        self.patched
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(Change::Made)
    }
}

fn matches(taint: &ApiTaint, ours: &Taint) -> bool {
    taint.key == ours.key && taint.effect == ours.effect.as_str()
}

/// Reduces a node to its state.
pub(super) fn trim(node: &NodeManifest, taint: &Taint) -> Node {
    let annotations = node.metadata.annotations.as_ref();
    Node {
        tainted: node.spec.taints.iter().any(|known| matches(known, taint)),
        annotated: annotations.is_some_and(|annotations| annotations.contains_key(GUARDED)),
        leaving: node.metadata.deletion_timestamp.is_some(),
    }
}

/// Returns the node of the pod of an agent, unless the pod is finished or not bound.
pub(super) fn agent(pod: &AgentManifest) -> Option<&str> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    pod.spec
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}
