//! The taint on nodes without an agent, on a real API with the shipped rights.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::super::fixture::{Fixture, SERVER_ACCOUNT, SYSTEM};
use super::super::report::{Facts, short};
use super::rights::rights;

/// The rights that only this needs, as they are shipped.
const RBAC: &str = include_str!("../../../../../deploy/manifests/node-taint.yaml");
const TAINT: &str = "kiam.io/agent-not-ready";
const OTHER: &str = "example.com/spot";
const GUARDED: &str = "kiam.io/agent-guarded";
const FLAGS: [&str; 2] = [
    "--node-taint=kiam.io/agent-not-ready",
    "--node-taint-after=2s",
];

pub(super) async fn keeps(fixture: &mut Fixture) -> Result<Facts> {
    let kubelet = fixture.kubelets[1].clone();
    let nodes = Api::<Node>::all(fixture.objects.client().clone());
    for name in ["node-1", "node-2"] {
        let taints = json!([
            { "key": TAINT, "effect": "NoSchedule" },
            { "key": OTHER, "value": "true", "effect": "NoSchedule" },
        ]);
        let patch = Patch::Merge(json!({ "spec": { "taints": taints } }));
        nodes.patch(name, &PatchParams::default(), &patch).await?;
    }
    let server = (SYSTEM, SERVER_ACCOUNT);
    let before = rights(fixture, server, SYSTEM).await?;
    fixture.objects.apply(RBAC).await?;
    let after = rights(fixture, server, SYSTEM).await?;
    let more: BTreeSet<_> = after.difference(&before).map(String::as_str).collect();
    let expected = ["get /nodes", "list /nodes", "patch /nodes", "watch /nodes"];
    ensure!(
        more == BTreeSet::from(expected),
        "the server may also {more:?}"
    );

    let begin = Instant::now();
    fixture.stop_server()?;
    fixture.start_server_with(&FLAGS)?;
    until(&nodes, "node-1", false).await?;
    let restarted = begin.elapsed();
    ensure!(has(&nodes, "node-2").await?, "node-2 has no agent");

    let (pod, token) = fixture.agent_pod(&kubelet).await?;
    let mut agent = fixture.start_agent(&kubelet, &pod, &token, &[])?;
    let begin = Instant::now();
    agent.ready()?;
    until(&nodes, "node-2", false).await?;
    let guarded = begin.elapsed();

    // An agent that only restarts loses nothing; one whose pod is gone does.
    agent.stop()?;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    ensure!(
        !has(&nodes, "node-2").await?,
        "its agent's pod is still there"
    );
    let begin = Instant::now();
    kubelet.stop(pod).await?;
    until(&nodes, "node-2", true).await?;
    let gone = begin.elapsed();
    ensure!(!has(&nodes, "node-1").await?, "node-1 is guarded");

    fixture.stop_server()?;
    fixture.start_server()?;
    fixture.objects.delete(RBAC).await?;
    fixture.agent.ready()?;
    Ok(vec![format!(
        "off {} after a server was started, {} after an agent was; back {} after the agent's pod \
         was gone, 2 s of which were asked for",
        short(restarted),
        short(guarded),
        short(gone)
    )])
}

/// Returns whether a node has the taint. Other taints stay in every case.
async fn has(nodes: &Api<Node>, name: &str) -> Result<bool> {
    let node = nodes.get(name).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let with = |key: &str| taints.iter().any(|taint| taint.key == key);
    ensure!(with(OTHER), "{name} has lost another taint: {taints:?}");
    let noted = node
        .metadata
        .annotations
        .unwrap_or_default()
        .contains_key(GUARDED);
    ensure!(with(TAINT) || noted, "{name} is not recorded as guarded");
    Ok(with(TAINT))
}

async fn until(nodes: &Api<Node>, name: &str, tainted: bool) -> Result<()> {
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    while Instant::now() < deadline {
        if has(nodes, name).await? == tainted {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bail!("{name} should have the taint: {tainted}")
}
