//! A fresh installation, and pods of each kind on it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::time::Instant;

use super::super::pods::{self, NAMESPACE};
use super::super::{Cluster, STEP};
use testbed::doubles::imds::NODE_ROLE;
use testbed::doubles::sts::ACCOUNT;
use testbed::sandbox::Finished;

/// Installs the chart with its defaults, until agents and servers are ready.
pub(super) fn install(cluster: &mut Cluster) -> Result<()> {
    cluster.helm(&["install"], &[])?;
    cluster.rolled_out()
}

/// Pods of all kinds start, a static one too.
pub(super) fn pods_start(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl.apply(pods::PODS)?;
    let script = format!(
        "cat > /etc/kubernetes/manifests/static.yaml <<'END'\n{}END\n",
        pods::STATIC
    );
    cluster.node().check(&script)?;
    for name in [
        "guaranteed",
        "burstable",
        "besteffort",
        "account",
        "roleless",
    ] {
        cluster.started(name)?;
    }
    cluster.started(&cluster.static_pod())?;
    let done = |job: &Value| job["status"]["succeeded"] == 1 || job["status"]["failed"] == 1;
    let args = ["-n", NAMESPACE, "job/job"];
    let limit = cluster.limit(STEP);
    cluster.kubectl.wait("done", &args, limit, done).map(drop)
}

pub(super) fn guaranteed(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("guaranteed", "c", "Guaranteed")
}

pub(super) fn burstable(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("burstable", "c", "Burstable")
}

pub(super) fn best_effort(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("besteffort", "c", "BestEffort")
}

pub(super) fn init_container(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("guaranteed", "init", "Guaranteed")
}

pub(super) fn sidecar(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("guaranteed", "sidecar", "Guaranteed")
}

pub(super) fn service_account(cluster: &mut Cluster) -> Result<()> {
    cluster.serves("account", "c", "BestEffort")
}

/// A pod that ends after one question; its keys sign as its role.
pub(super) fn job(cluster: &mut Cluster) -> Result<()> {
    let log = cluster.kubectl.logs(NAMESPACE, "job/job", "c")?;
    cluster.all_of(&log, &cluster.role("job"))?;
    cluster.sign(&log, "job")
}

pub(super) fn static_pod(cluster: &mut Cluster) -> Result<()> {
    let log = cluster.answered(&cluster.static_pod(), "c")?;
    cluster.all_of(&log, &cluster.role("static")).map(drop)
}

/// Checks that a process of `kubectl exec` belongs to the pod; its keys sign as its role.
pub(super) fn exec(cluster: &mut Cluster) -> Result<()> {
    let log = cluster.exec("besteffort", &["ask", "-c"])?;
    cluster.all_of(&log, &cluster.role("besteffort"))?;
    cluster.sign(&log, "besteffort")
}

/// A probe that the runtime executes in the container is the pod's.
pub(super) fn exec_probe(cluster: &mut Cluster) -> Result<()> {
    let mut what = "burstable";
    if cluster.run.args.planted {
        // A probe of another pod's role: it never succeeds.
        what = "planted";
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: planted, namespace: pods, \
            annotations: {iam.amazonaws.com/role: other-role}}\nspec:\n  containers:\n  - {name: c, \
            image: \"docker.io/library/pod:1\", command: [pause], readinessProbe: {exec: {command: \
            [ask, -e, burstable-role]}, timeoutSeconds: 30}}\n";
        cluster.kubectl.apply(pod)?;
    }
    let ready = |pod: &Value| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        statuses.is_some_and(|all| all.iter().all(|one| one["ready"] == true))
    };
    let args = ["-n", NAMESPACE, "pod", what];
    let limit = cluster.limit(STEP / 3);
    cluster.kubectl.wait("ready", &args, limit, ready).map(drop)
}

/// A container that is added to a running pod is the pod's.
pub(super) fn ephemeral_container(cluster: &mut Cluster) -> Result<()> {
    let image = format!("--image={}", super::super::payload::POD_IMAGE);
    let args = [
        "-n",
        NAMESPACE,
        "debug",
        "account",
        &image,
        "--container=added",
    ];
    let debug = [&args[..], &["--target=c", "--", "ask", "-n", "2"]].concat();
    cluster.kubectl.run(&debug)?;
    let ended = |pod: &Value| {
        let statuses = pod["status"]["ephemeralContainerStatuses"].as_array();
        statuses.is_some_and(|all| all.iter().any(|one| one["state"]["terminated"].is_object()))
    };
    let args = ["-n", NAMESPACE, "pod", "account"];
    let limit = cluster.limit(STEP);
    cluster.kubectl.wait("through", &args, limit, ended)?;
    let log = cluster.kubectl.logs(NAMESPACE, "account", "added")?;
    cluster.all_of(&log, &cluster.role("account")).map(drop)
}

/// Checks that a pod gets no credentials, least of all the node's.
pub(super) fn roleless(cluster: &mut Cluster) -> Result<()> {
    let pod = if cluster.run.args.planted {
        "account"
    } else {
        "roleless"
    };
    let log = cluster.answered(pod, "c")?;
    pods::all_refused(&log)
}

/// A pod that is deleted is served until its last container ends, its `preStop` hook included.
pub(super) fn grace_period(cluster: &mut Cluster) -> Result<()> {
    let follow = ["-n", NAMESPACE, "logs", "-f", "burstable", "-c", "c"];
    let follow = cluster.kubectl.start(&follow)?;
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "burstable",
        "--wait=false",
    ];
    cluster.kubectl.run(&delete)?;
    let ended = follow.finish(cluster.limit(STEP))?;
    let answers = cluster.all_of(&ended.stdout, &cluster.role("burstable"))?;
    let after = answers.iter().filter(|answer| answer.terminating).count();
    ensure!(
        after > 1,
        "it asked {after} times after it was asked to end"
    );
    Ok(())
}

/// A pod in the node's network namespace keeps the node's service, as the chart has it.
pub(super) fn host_network_passthrough(cluster: &mut Cluster) -> Result<()> {
    no_packet(cluster)?;
    cluster.host_network_pod("passthrough", Some("passthrough"))?;
    let log = cluster.kubectl.logs(NAMESPACE, "passthrough", "c")?;
    let expected = if cluster.run.args.planted {
        "planted-role"
    } else {
        NODE_ROLE
    };
    let served = pods::answers(&log);
    ensure!(
        served.iter().all(|answer| answer.text == expected) && !served.is_empty(),
        "not {expected}: {log}"
    );
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "passthrough",
        "--wait=true",
    ];
    cluster.kubectl.run_for(&delete, cluster.limit(STEP))?;
    ensure!(
        cluster.vpc.packets().count() > 0,
        "its packets were not seen"
    );
    cluster.allowed = cluster.vpc.packets().count();
    Ok(())
}

/// Checks that only permitted packets were sent to the node's service.
pub(super) fn no_packet(cluster: &mut Cluster) -> Result<()> {
    let seen = cluster.vpc.packets().count();
    let allowed = if cluster.run.args.planted && seen > 0 {
        0
    } else {
        cluster.allowed
    };
    ensure!(
        seen == allowed,
        "{} packets reached the node's metadata service: {}",
        seen - allowed,
        cluster.vpc.packets().last(seen - allowed)
    );
    Ok(())
}

impl Cluster {
    /// The API's name of the static pod on the first node.
    pub(super) fn static_pod(&self) -> String {
        format!("static-{}", self.node().name())
    }

    /// Waits until all of a pod's containers run or have run.
    pub(super) fn started(&self, pod: &str) -> Result<()> {
        let limit = self.limit(STEP);
        let started = |pod: &Value| {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            let statuses = pod["status"]["containerStatuses"].as_array();
            let runs =
                |one: &Value| one["started"] == true || one["state"]["terminated"].is_object();
            matches!(phase, "Running" | "Succeeded" | "Failed")
                && statuses.is_some_and(|all| all.iter().all(runs))
        };
        let args = ["-n", NAMESPACE, "pod", pod];
        self.kubectl
            .wait("started", &args, limit, started)
            .map(drop)
    }

    /// Checks that a container got its pod's role on each request, from the first on; and the pod
    /// is of this class.
    fn serves(&self, pod: &str, container: &str, class: &str) -> Result<()> {
        let object = self.kubectl.get(&["-n", NAMESPACE, "pod", pod])?;
        ensure!(
            object["status"]["qosClass"] == class,
            "{}",
            object["status"]
        );
        let log = self.answered(pod, container)?;
        self.all_of(&log, &self.role(pod)).map(drop)
    }

    /// Output of a container, once it has been answered.
    pub(super) fn answered(&self, pod: &str, container: &str) -> Result<String> {
        let mut log = String::new();
        self.until(self.limit(STEP), || {
            log = self.kubectl.logs(NAMESPACE, pod, container)?;
            ensure!(
                !pods::answers(&log).is_empty(),
                "{pod} sent no request: {log}"
            );
            Ok(())
        })?;
        Ok(log)
    }

    /// Runs a command in a pod's container, which has to succeed.
    pub(super) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let ended = self.try_exec(pod, command)?;
        let Finished {
            status,
            stdout,
            stderr,
        } = ended;
        ensure!(
            status.success(),
            "{} in {pod} ({status}): {stdout}{stderr}",
            command.join(" ")
        );
        Ok(stdout)
    }

    /// Runs a command in a pod's container, which may fail.
    pub(super) fn try_exec(&self, pod: &str, command: &[&str]) -> Result<Finished> {
        let args = [&["-n", NAMESPACE, "exec", pod, "-c", "c", "--"], command].concat();
        self.kubectl.try_run(&args, self.limit(STEP))
    }

    /// Tries something until it succeeds.
    pub(super) fn until(
        &self,
        limit: Duration,
        mut what: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let result = what();
            if result.is_ok() || Instant::now() > deadline {
                return result;
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// The keys in what a container has printed make their holder a session of this pod's role.
    pub(super) fn sign(&self, log: &str, name: &str) -> Result<()> {
        let keys = pods::keys(log)?;
        let who = self.vpc.sts().identify(&keys);
        let who = who.map_err(|code| anyhow::anyhow!("its keys do not sign: {code}"))?;
        let role = self.role(name);
        let expected = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/");
        ensure!(who.starts_with(&expected), "its keys are of {who}");
        Ok(())
    }

    /// Runs a pod in the node's network namespace, with or without a role, until its first request.
    pub(super) fn host_network_pod(&self, name: &str, role: Option<&str>) -> Result<()> {
        let annotations = role.map(|role| format!("iam.amazonaws.com/role: {role}-role"));
        let annotations = annotations.unwrap_or_default();
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  \
             annotations: {{{annotations}}}\nspec:\n  hostNetwork: true\n  \
             restartPolicy: Never\n  automountServiceAccountToken: false\n  containers:\n  - {{name: c, \
             image: \"docker.io/library/pod:1\", command: [ask]}}\n"
        );
        self.kubectl.apply(&pod)?;
        let through = |pod: &Value| {
            matches!(
                pod["status"]["phase"].as_str(),
                Some("Succeeded" | "Failed")
            )
        };
        let args = ["-n", NAMESPACE, "pod", name];
        let limit = self.limit(STEP + Duration::from_secs(10));
        self.kubectl
            .wait("through", &args, limit, through)
            .map(drop)
    }
}
