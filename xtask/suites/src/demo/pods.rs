//! The demo's pods, their roles, and the file with the roles that they may assume.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use toolchain::AWS;

use testbed::file_cluster::{BASE_ARN, FileCluster, FileClusterNode};
use testbed::sandbox::{Node, Pod, PodOptions, Program};

/// Namespaces, and whether they permit roles with their name as a prefix.
const NAMESPACES: [(&str, bool); 3] = [("orders", true), ("billing", true), ("sandbox", false)];
/// Namespace, pod, the role that it wants, and whether its namespace permits that.
const ROLES: [(&str, &str, &str, bool); 4] = [
    ("orders", "api", "orders-db", true),
    ("billing", "worker", "billing-reports", true),
    ("billing", "intruder", "orders-db", false),
    ("sandbox", "newcomer", "sandbox-files", false),
];
const PERMITTED: &str = "iam.amazonaws.com/permitted";
const FILE: &str = "cluster";
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// A pod and its requested role.
#[derive(Debug)]
pub(super) struct DemoPod {
    namespace: &'static str,
    name: &'static str,
    wants: &'static str,
    permitted: bool,
    pod: Pod,
}

/// All pods, and the file.
#[derive(Debug)]
pub(super) struct DemoPods {
    all: Vec<DemoPod>,
    yaml: String,
}

/// Line of the file that denies a pod its role.
#[derive(Debug)]
pub(super) struct Obstacle {
    /// The line's number, from 1.
    pub(super) at: usize,
    /// Its text.
    pub(super) line: String,
    /// Text to add below it, unless the line itself is to be changed.
    pub(super) lacks: Option<String>,
}

/// A connection as the kernel reported it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: String,
    pub(super) cgroup: u64,
    pub(super) uid: String,
}

impl DemoPod {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) const fn wants(&self) -> &'static str {
        self.wants
    }

    pub(super) const fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Returns whether the namespace permits the requested role.
    pub(super) const fn is_permitted(&self) -> bool {
        self.permitted
    }

    /// Returns the pattern of roles that the namespace permits, if it has one.
    pub(super) fn may_have(&self) -> Option<String> {
        NAMESPACES
            .contains(&(self.namespace, true))
            .then(|| permitted(self.namespace))
    }

    /// The name of the script that enters it.
    pub(super) fn script(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }
}

impl DemoPods {
    /// Makes the pods, and writes the file that the server reads.
    pub(super) fn create(cluster: &FileCluster, node: &FileClusterNode) -> Result<Self> {
        let mut all = Vec::new();
        for (namespace, name, wants, permitted) in ROLES {
            let pod = node.node().pod(PodOptions::default())?;
            all.push(DemoPod {
                namespace,
                name,
                wants,
                permitted,
                pod,
            });
        }
        let yaml = yaml(&all)?;
        cluster.objects().put_text(FILE, &yaml)?;
        let pods = Self { all, yaml };
        pods.write_scripts(cluster, node.node())?;
        Ok(pods)
    }

    pub(super) fn all(&self) -> &[DemoPod] {
        &self.all
    }

    /// Returns the line of the file that denies a pod its role.
    pub(super) fn obstacle(&self, demo_pod: &DemoPod) -> Result<Obstacle> {
        let may_have = demo_pod.may_have();
        let (sought, lacks) = match &may_have {
            Some(permitted) => (format!("{PERMITTED}: {permitted}"), None),
            None => {
                let lacking = format!("{PERMITTED}: {}", permitted(demo_pod.namespace));
                (format!("name: {}", demo_pod.namespace), Some(lacking))
            }
        };
        let mut lines = self.yaml.lines().map(str::trim).zip(1..);
        let found = lines.find(|(line, _)| *line == sought);
        let (line, at) = found.context("the file names every namespace")?;
        Ok(Obstacle {
            at,
            line: line.to_owned(),
            lacks,
        })
    }

    /// One script for each pod, and one for the node: runs a command there.
    fn write_scripts(&self, cluster: &FileCluster, node: &Node) -> Result<()> {
        let mut environment = String::new();
        for (name, value) in environment_of_shell(cluster)? {
            write!(environment, " {name}={value}")?;
        }
        let places = self
            .all
            .iter()
            .map(|demo_pod| (demo_pod.script(), demo_pod.pod.place()));
        for (name, place) in places.chain([("node".to_owned(), node.place())]) {
            let path = cluster.sandbox().scratch().join(name);
            let script = format!(
                "#!/bin/sh\n# Runs a command here, as in: {} curl http://169.254.169.254/\n\
                 exec {} env -i{environment} \"${{@:-sh}}\"\n",
                path.display(),
                place.shell()
            );
            std::fs::write(&path, script)
                .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Environment of a pod's program: the address of STS, and no credentials.
pub(super) fn environment(cluster: &FileCluster) -> Result<[(&'static str, String); 3]> {
    let home = cluster.sandbox().folder("home")?;
    Ok([
        ("HOME", home.display().to_string()),
        ("AWS_DEFAULT_REGION", "eu-west-1".to_owned()),
        ("AWS_ENDPOINT_URL_STS", cluster.sts().url()),
    ])
}

fn environment_of_shell(cluster: &FileCluster) -> Result<Vec<(&'static str, String)>> {
    let tools = AWS.program("").display().to_string();
    let path = format!("{tools}:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut environment = environment(cluster)?.to_vec();
    environment.extend([("PATH", path), ("TERM", "\"$TERM\"".to_owned())]);
    Ok(environment)
}

fn permitted(namespace: &str) -> String {
    format!("{BASE_ARN}{namespace}-.*")
}

fn yaml(all: &[DemoPod]) -> Result<String> {
    let mut yaml = String::from(
        "# What kiam-server takes for the cluster. Change it: it is read again at once.\n",
    );
    for (namespace, permits) in NAMESPACES {
        write!(
            yaml,
            "---
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
"
        )?;
        if permits {
            let permitted = permitted(namespace);
            write!(yaml, "  annotations:\n    {PERMITTED}: {permitted}\n")?;
        }
    }
    for DemoPod {
        namespace,
        name,
        wants,
        pod,
        ..
    } in all
    {
        let (uid, node) = (pod.uid(), pod.node().name());
        let (v4, v6) = (
            pod.ip().context("an address")?,
            pod.ipv6().context("an address")?,
        );
        write!(
            yaml,
            "---
apiVersion: v1
kind: Pod
metadata:
  namespace: {namespace}
  name: {name}
  uid: {uid}
  annotations:
    iam.amazonaws.com/role: {wants}
spec:
  nodeName: {node}
  serviceAccountName: default
status:
  phase: Running
  podIPs:
    - ip: {v4}
    - ip: {v6}
"
        )?;
    }
    Ok(yaml)
}

/// Connections of a pod as identified by the kernel, from the agent's log.
pub(super) fn connections(agent: &Program, pod: &Pod) -> Result<Vec<Connection>> {
    let of_pod = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["pod.uid"] == pod.uid()).then_some(())?;
        Some(Connection {
            peer: line["peer"].as_str()?.to_owned(),
            cgroup: line["cgroup"].as_u64()?,
            uid: line["pod.uid"].as_str()?.to_owned(),
        })
    };
    // The line was written before the answer; it may still be on its way here.
    agent.wait_for("connection of the pod", LOG_LIMIT, of_pod)?;
    Ok(agent.output().lines().filter_map(of_pod).collect())
}
