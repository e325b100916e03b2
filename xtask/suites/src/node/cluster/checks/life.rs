//! Checks of pods and nodes over time: they are created again, restarted, cut off.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::super::pods::{self, NAMESPACE};
use super::super::{Cluster, RELEASE_NAMESPACE, STEP};
use super::basic;
use testbed::sandbox::Program;

const SET: &str = include_str!("../files/set.yaml");
const USERS: &str = include_str!("../files/users.yaml");

/// A pod that is made again under the same name has its new role from its first request on.
pub(super) fn stateful_set(cluster: &mut Cluster) -> Result<()> {
    for generation in ["first", "second"] {
        let role = format!("{generation}-role");
        cluster.kubectl.apply(&SET.replace("ROLE", &role))?;
        cluster.of_role("set-0", &role)?;
        let log = cluster.answered("set-0", "c")?;
        cluster.all_of(&log, &cluster.role(generation))?;
    }
    cluster.delete("statefulset", "set")
}

/// A pod with a user namespace of its own.
pub(super) fn host_users(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl.apply(USERS)?;
    cluster.started("users")?;
    let map = cluster
        .node()
        .check("cat /proc/$(pgrep -f '^ask .*users-role')/uid_map")?;
    ensure!(
        !map.trim_start().starts_with("0          0"),
        "it has the node's users: {map}"
    );
    let log = cluster.answered("users", "c")?;
    cluster.all_of(&log, &cluster.role("users"))?;
    cluster.delete("pod", "users")
}

/// A pod whose object is removed at once, before its containers have ended, gets nothing of
/// another's.
pub(super) fn force_delete(cluster: &mut Cluster) -> Result<()> {
    let follow = cluster.follow("besteffort")?;
    let args = ["-n", NAMESPACE, "delete", "pod", "besteffort", "--force"];
    cluster
        .kubectl
        .run(&[&args[..], &["--grace-period=0"]].concat())?;
    let ended = follow.finish(cluster.limit(STEP))?;
    pods::not_the_nodes(&ended.stdout)?;
    let role = cluster.role("besteffort");
    for answer in pods::answers(&ended.stdout) {
        ensure!(
            answer.status != 200 || answer.text == role,
            "it got {}",
            answer.text
        );
    }
    basic::no_packet(cluster)
}

/// Pods are served while the kubelet is started again.
pub(super) fn kubelet_restart(cluster: &mut Cluster) -> Result<()> {
    cluster.served_while(|cluster| {
        cluster.node().check("systemctl restart kubelet")?;
        cluster.kubelet_serves()
    })
}

/// Pods are served while containerd is started again.
pub(super) fn containerd_restart(cluster: &mut Cluster) -> Result<()> {
    cluster.served_while(|cluster| {
        cluster.node().check("systemctl restart containerd")?;
        cluster.kubelet_serves()
    })
}

/// No request is lost while agents are replaced.
pub(super) fn agent_rollout(cluster: &mut Cluster) -> Result<()> {
    cluster.served_while(|cluster| {
        let what = ["rollout", "restart", "daemonset/kiam-agent"];
        cluster
            .kubectl
            .run(&[&["-n", RELEASE_NAMESPACE], &what[..]].concat())?;
        cluster.rolled_out()
    })
}

/// No request is lost while the version before is replaced.
pub(super) fn upgrade(cluster: &mut Cluster) -> Result<()> {
    cluster.served_while(|cluster| {
        cluster.images.pop();
        cluster.helm(&["upgrade"], &[])?;
        cluster.rolled_out()
    })
}

/// A node that was shut down serves its pods again.
pub(super) fn reboot(cluster: &mut Cluster) -> Result<()> {
    started_again(cluster, false)
}

/// A node whose power was cut serves its pods again.
pub(super) fn power_cut(cluster: &mut Cluster) -> Result<()> {
    started_again(cluster, true)
}

fn started_again(cluster: &mut Cluster, power_cut: bool) -> Result<()> {
    cluster.workers[0].restart(power_cut)?;
    cluster.node_ready()?;
    cluster.rolled_out()?;
    for pod in ["guaranteed", "account"] {
        cluster.started(pod)?;
        let limit = cluster.limit(STEP);
        let role = cluster.role(pod);
        cluster.until(limit, || {
            let log = cluster.exec(pod, &["ask"])?;
            cluster.all_of(&log, &role).map(drop)
        })?;
        let log = cluster.kubectl.logs(NAMESPACE, pod, "c")?;
        pods::not_the_nodes(&log)?;
    }
    basic::no_packet(cluster)
}

impl Cluster {
    /// Waits until containers can be reached by the kubelet and the runtime: the condition
    /// Ready of the node changes late.
    fn kubelet_serves(&self) -> Result<()> {
        self.until(self.limit(STEP), || {
            let ended = self.try_exec("roleless", &["ask"])?;
            ensure!(ended.stdout.contains("end ["), "{}", ended.stderr);
            Ok(())
        })
    }

    /// Reads what a pod's container prints from now on, too.
    fn follow(&self, pod: &str) -> Result<Program> {
        let args = ["-n", NAMESPACE, "logs", "-f", "--tail=1", pod, "-c", "c"];
        let follow = self.kubectl.start(&args)?;
        follow.wait_for("answer", self.limit(STEP), |line| {
            line.starts_with('+').then_some(())
        })?;
        Ok(follow)
    }

    /// A pod gets its role each time while something is done.
    fn served_while(&mut self, what: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let before = pods::answers(&self.kubectl.logs(NAMESPACE, "account", "c")?).len();
        what(self)?;
        let role = self.role("account");
        // Once more when it is over: what was left behind would show.
        let log = self.exec("account", &["ask"])?;
        self.all_of(&log, &role)?;
        let log = self.kubectl.logs(NAMESPACE, "account", "c")?;
        let all = self.all_of(&log, &role)?;
        ensure!(all.len() > before, "it sent no request meanwhile");
        basic::no_packet(self)
    }

    /// Waits until a pod of this name, of this role, has started.
    fn of_role(&self, pod: &str, role: &str) -> Result<()> {
        let is = |pod: &Value| {
            pod["metadata"]["annotations"]["iam.amazonaws.com/role"] == role
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let args = ["-n", NAMESPACE, "pod", pod];
        let limit = self.limit(STEP);
        self.kubectl.wait("of its role", &args, limit, is)?;
        self.started(pod)
    }

    /// Deletes an object and waits until it is gone.
    pub(super) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let args = ["-n", NAMESPACE, "delete", kind, name, "--wait=true"];
        self.kubectl.run_for(&args, self.limit(STEP)).map(drop)
    }
}
