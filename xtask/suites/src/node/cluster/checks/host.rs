//! Pods in the node's network namespace, and the end of an installation.

use anyhow::{Result, bail, ensure};

use super::super::pods::{self, NAMESPACE};
use super::super::{Cluster, RELEASE, RELEASE_NAMESPACE, STEP};
use super::basic;

const DEPUTY: &str = include_str!("../files/deputy.yaml");

/// With `hostNetworkPods=annotated` a pod with a role gets it.
pub(super) fn annotated(cluster: &mut Cluster) -> Result<()> {
    cluster.helm(&["upgrade"], &["--set", "agent.hostNetworkPods=annotated"])?;
    cluster.rolled_out()?;
    cluster.host_network_pod("annotated", Some("annotated"))?;
    let log = cluster.kubectl.logs(NAMESPACE, "annotated", "c")?;
    cluster.all_of(&log, &cluster.role("annotated"))?;
    cluster.delete("pod", "annotated")?;
    basic::no_packet(cluster)
}

/// With `hostNetworkPods=deny` a pod without a role is refused.
pub(super) fn deny(cluster: &mut Cluster) -> Result<()> {
    let mode = if cluster.run.args.planted {
        "annotated"
    } else {
        "deny"
    };
    let mode = format!("agent.hostNetworkPods={mode}");
    cluster.helm(&["upgrade"], &["--set", &mode])?;
    cluster.rolled_out()?;
    cluster.host_network_pod("denied", None)?;
    let log = cluster.kubectl.logs(NAMESPACE, "denied", "c")?;
    cluster.delete("pod", "denied")?;
    pods::all_refused(&log)?;
    basic::no_packet(cluster)
}

/// A kubelet asks the node's service for a pod whose probe names it, which kiam cannot see; with
/// `probeHostPolicy` the API takes no such pod.
pub(super) fn deputy(cluster: &mut Cluster) -> Result<()> {
    let before = cluster.vpc.packets().count();
    cluster.kubectl.apply(DEPUTY)?;
    cluster.until(cluster.limit(STEP), || {
        let seen = cluster.vpc.packets().count();
        ensure!(
            seen > before,
            "its kubelet has not asked the node's service"
        );
        Ok(())
    })?;
    cluster.delete("pod", "deputy")?;
    cluster.allowed = cluster.vpc.packets().count();
    let enabled = format!("probeHostPolicy.enabled={}", !cluster.run.args.planted);
    cluster.helm(&["upgrade"], &["--set", &enabled])?;
    // The API server takes it up a little later.
    cluster.until(cluster.limit(STEP), || {
        match cluster.kubectl.apply(DEPUTY) {
            Ok(_applied) => {
                cluster.delete("pod", "deputy")?;
                bail!("the API takes a pod whose probe names the node's service")
            }
            Err(error) => {
                let error = format!("{error:#}");
                ensure!(error.contains("denied request"), "{error}");
                Ok(())
            }
        }
    })?;
    cluster.allowed = cluster.vpc.packets().count();
    Ok(())
}

/// After `helm uninstall` pods are refused, and not exposed.
pub(super) fn uninstall(cluster: &mut Cluster) -> Result<()> {
    let args = ["uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE];
    cluster.kubectl.helm(&args, cluster.limit(STEP))?;
    // kubectl prints nothing where there is none.
    let gone = |pods: &serde_json::Value| pods["items"].as_array().is_none_or(Vec::is_empty);
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
    if cluster.run.args.planted {
        cluster.all_of(&ended.stdout, &cluster.role("account"))?;
    } else {
        pods::all_refused(&ended.stdout)?;
    }
    basic::no_packet(cluster)
}

/// `kiam-agent cleanup` gives pods the node's service back.
pub(super) fn cleanup(cluster: &mut Cluster) -> Result<()> {
    let image = cluster.image()?;
    let script = format!(
        "ctr -n k8s.io run --rm --privileged --net-host --user 0:0 \
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
            .any(|answer| answer.text == testbed::doubles::imds::NODE_ROLE),
        "pods do not reach the node's service: {}",
        ended.stdout
    );
    cluster.allowed = cluster.vpc.packets().count();
    Ok(())
}
