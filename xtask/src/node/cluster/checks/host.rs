//! Pods in the node's network namespace, and the end of an installation.

use anyhow::{Result, ensure};

use super::super::pods::{self, NAMESPACE};
use super::super::{Cluster, RELEASE, RELEASE_NAMESPACE, STEP};
use super::basic;

/// With `hostNetworkPods=annotated` a pod with a role gets it.
pub(super) fn annotated(cluster: &mut Cluster) -> Result<()> {
    cluster.helm(&["upgrade"], &["--set", "agent.hostNetworkPods=annotated"])?;
    cluster.rolled_out()?;
    cluster.host_network_pod("annotated", "annotated")?;
    let log = cluster.kubectl.logs(NAMESPACE, "annotated", "c")?;
    pods::all_of(&log, &cluster.role("annotated"))?;
    cluster.delete("pod", "annotated")?;
    basic::no_packet(cluster)
}

/// With `hostNetworkPods=deny` it is refused, and so is one without a role.
pub(super) fn deny(cluster: &mut Cluster) -> Result<()> {
    let mode = if cluster.run.args.planted {
        "annotated"
    } else {
        "deny"
    };
    let mode = format!("agent.hostNetworkPods={mode}");
    cluster.helm(&["upgrade"], &["--set", &mode])?;
    cluster.rolled_out()?;
    cluster.host_network_pod("denied", "denied")?;
    let log = cluster.kubectl.logs(NAMESPACE, "denied", "c")?;
    cluster.delete("pod", "denied")?;
    pods::all_refused(&log)?;
    basic::no_packet(cluster)
}

/// After `helm uninstall` pods are refused, and not exposed.
pub(super) fn uninstall(cluster: &mut Cluster) -> Result<()> {
    let args = ["uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE];
    cluster.kubectl.helm(&args, cluster.limit(STEP))?;
    let gone = |pods: &serde_json::Value| pods["items"].as_array().is_some_and(Vec::is_empty);
    let args = [
        "-n",
        RELEASE_NAMESPACE,
        "pods",
        "-l",
        "app.kubernetes.io/name=kiam",
    ];
    let limit = cluster.limit(STEP);
    cluster.kubectl.wait("gone", &args, limit, gone)?;
    let ended = cluster.try_exec("account", &["ask"])?;
    pods::all_refused(&ended.stdout)?;
    basic::no_packet(cluster)?;
    ensure!(
        !cluster.run.args.planted,
        "a planted failure: nothing else can be wrong here"
    );
    Ok(())
}

/// `kiam-agent cleanup` gives pods the node's service back.
pub(super) fn cleanup(cluster: &mut Cluster) -> Result<()> {
    let image = cluster.image()?;
    let script = format!(
        "ctr -n k8s.io run --rm --privileged --net-host \
         --mount type=bind,src=/sys/fs/cgroup,dst=/run/kiam/cgroup,options=rbind:rw \
         --mount type=bind,src=/sys/fs/bpf,dst=/run/kiam/bpf,options=rbind:rw \
         {image} cleanup /kiam-agent cleanup --bpffs=/run/kiam/bpf"
    );
    if !cluster.run.args.planted {
        cluster.node().check(&script)?;
    }
    let ended = cluster.try_exec("account", &["ask"])?;
    let answers = pods::answers(&ended.stdout);
    ensure!(
        answers
            .iter()
            .any(|answer| answer.text == crate::doubles::imds::NODE_ROLE),
        "pods do not reach the node's service: {}",
        ended.stdout
    );
    cluster.allowed = cluster.vpc.packets().count();
    Ok(())
}
