//! An agent's start and a pod's, as a pod sees them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::exec;

use super::report::{Aim, Figure, Section};
use super::{METADATA, client_command};
use pod_client::flood::{First, How, monotonic};
use testbed::file_cluster::{FileCluster, FileClusterNode, pod_file};
use testbed::kiam::Agent;
use testbed::sandbox::{NodeOptions, Pod, Program};

const STARTS: usize = 5;
const PODS: usize = 30;
pub(super) const MANY: usize = 110;
const LIMIT: Duration = Duration::from_secs(20);
/// Time in which a client starts, so that its start is not measured.
const HEAD_START: Duration = Duration::from_millis(60);

/// Measures.
///
/// # Errors
/// Fails when the sandbox fails, or there is no answer.
pub(super) fn measure(cluster: &FileCluster, pod_client: &Path) -> Result<Section> {
    let node = cluster.node("node-lives", NodeOptions::default())?;
    let pod = cluster.pod(&node, ("team-a", "observer"), Some("a-reader"))?;
    let (mut guarded, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (agent, started, first) = start(cluster, &node, &pod, pod_client)?;
        let exposed = first
            .exposed
            .context("the pod was not there before the agent")?;
        guarded.push((exposed - started).max(0.0));
        answered.push(first.answered - started);
        stop(cluster, &node, agent)?;
    }
    let bound = bound(cluster, &node, pod_client)?;
    crowd(cluster, &node, MANY)?;
    let mut agent = cluster.start_agent(&node, &[])?;
    let mut restarted = Vec::new();
    for _ in 0..STARTS {
        agent.stop()?;
        let (next, started, first) = start(cluster, &node, &pod, pod_client)?;
        ensure!(
            first.exposed.is_none(),
            "the pod reached the node's own service"
        );
        restarted.push(first.answered - started);
        agent = next;
    }
    Ok(Section {
        title: "Starts",
        path: "A pod asks 169.254.169.254 twice a millisecond while `kiam-agent` (release) starts on its node: the node's own service, a double, is what it reaches before it is guarded. A pod is bound when its object is in the source of `kiam-server` (release); its role is one that no pod had before, fetched from an STS double that answers at once.".into(),
        figures: vec![
            Figure::of("cold_guarded_ms", "process start to no pod's reaching the node's own service", "ms", &guarded).aiming(Aim::AtMost(100.0)),
            Figure::of("cold_answer_ms", "process start to the first answer", "ms", &answered).aiming(Aim::AtMost(300.0)),
            Figure::of("restart_answer_ms", "the same of a restart, 110 pods on the node", "ms", &restarted).aiming(Aim::AtMost(300.0)),
            Figure::of("bound_answer_p50_ms", "pod bound to its being answered", "ms", &bound),
            Figure::one("bound_answer_p99_ms", "the slowest of 30", "ms", bound.iter().copied().fold(0.0, f64::max)),
        ],
    })
}

/// Starts an agent while a pod sends requests all the time.
fn start(
    cluster: &FileCluster,
    node: &FileClusterNode,
    pod: &Pod,
    pod_client: &Path,
) -> Result<(Agent, f64, First)> {
    let client = first(pod, pod_client, "a-reader")?;
    std::thread::sleep(HEAD_START);
    let started = monotonic()?;
    let agent = cluster.launch_agent(node, node.tls(), &[])?;
    Ok((agent, started, answer(client)?))
}

fn stop(cluster: &FileCluster, node: &FileClusterNode, agent: Agent) -> Result<()> {
    agent.stop()?;
    let place = node.node().place();
    let mut cleanup = place.command(cluster.programs().agent());
    cleanup.arg("cleanup");
    cleanup.arg(format!("--bpffs={}", node.node().bpffs().path().display()));
    exec(&mut cleanup).map(drop)
}

/// Pods that run and send requests, and are bound then.
fn bound(cluster: &FileCluster, node: &FileClusterNode, pod_client: &Path) -> Result<Vec<f64>> {
    let _agent = cluster.start_agent(node, &[])?;
    let mut times = Vec::new();
    for number in 0..PODS {
        let (name, role) = (format!("new-{number}"), format!("new-role-{number}"));
        let pod = node.node().pod(testbed::sandbox::PodOptions::default())?;
        let client = first(&pod, pod_client, &role)?;
        std::thread::sleep(HEAD_START);
        let started = monotonic()?;
        cluster
            .objects()
            .put_pod(&pod, ("team-a", &name), Some(&role))?;
        times.push(answer(client)?.answered - started);
        cluster.objects().remove_pod(("team-a", &name))?;
    }
    Ok(times)
}

/// Pods that only exist in the cluster, to fill the node; five of them share a role.
pub(super) fn crowd(cluster: &FileCluster, node: &FileClusterNode, pods: usize) -> Result<()> {
    for number in 0..pods {
        let name = format!("crowd-{number}");
        let object = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": format!("00000000-0000-4000-8000-{number:012}"),
                "annotations": { "iam.amazonaws.com/role": format!("crowd-role-{}", number / 5) },
            },
            "spec": { "nodeName": node.node().name(), "serviceAccountName": "default" },
            "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.99.{}.{}", number / 250, number % 250) }] },
        });
        cluster
            .objects()
            .put(&pod_file(("team-a", &name)), &object)?;
    }
    Ok(())
}

fn first(pod: &Pod, pod_client: &Path, role: &str) -> Result<Program> {
    let path = format!("/latest/meta-data/iam/security-credentials/{role}");
    let mut command = client_command(pod, pod_client, How::First, METADATA, &path);
    command.arg("--time=15000");
    Program::start("the pod's client", command)
}

fn answer(client: Program) -> Result<First> {
    let ended = client.finish(LIMIT)?;
    ensure!(ended.status.success(), "no answer: {}", ended.stderr);
    serde_json::from_str(ended.stdout.trim()).context("the client printed something else")
}
