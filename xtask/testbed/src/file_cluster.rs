//! A cluster without an API: the sandbox, the STS double, and a file that says which pods there
//! are. `demo` and the sandbox tests use it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::doubles::imds::Imds;
use crate::doubles::sts::Sts;
use crate::kiam::{Agent, AgentOptions, Programs, SERVER_ADDRESS, Server, ServerOptions, Source};
use crate::pki::{Authority, PemFiles};
use crate::sandbox::{CONTROL_IP, Node, NodeOptions, Pod, PodOptions, Sandbox};

const STS_PORT: u16 = 4566;
/// Completes short role names.
pub const BASE_ARN: &str = "arn:aws:iam::123456789012:role/";

/// A sandbox with STS and the cluster's objects, and without nodes.
#[derive(Debug)]
pub struct FileCluster {
    // In the order in which they are dropped.
    sts: Sts,
    objects: Objects,
    server_tls: PemFiles,
    authority: Authority,
    programs: Programs,
    sandbox: Sandbox,
}

/// A node with its own metadata service, which no pod must reach.
#[derive(Debug)]
pub struct FileClusterNode {
    agents: AtomicU32,
    imds: Imds,
    tls: PemFiles,
    node: Node,
}

impl FileCluster {
    /// Makes a sandbox with STS in it.
    ///
    /// # Errors
    /// When the sandbox cannot be made.
    pub fn new(programs: &Programs) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let authority = Authority::new("kiam")?;
        let sts = SocketAddr::new(CONTROL_IP, STS_PORT);
        Ok(Self {
            server_tls: authority.write_server(&sandbox.folder("server")?)?,
            sts: Sts::start(sandbox.control().netns().listen(sts)?)?,
            objects: Objects::new(&sandbox.folder("cluster")?)?,
            authority,
            programs: programs.clone(),
            sandbox,
        })
    }

    /// The sandbox.
    pub const fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The authority of everybody's certificates.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// STS.
    pub const fn sts(&self) -> &Sts {
        &self.sts
    }

    /// The objects of the cluster.
    pub const fn objects(&self) -> &Objects {
        &self.objects
    }

    /// kiam's programs.
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The server's certificate.
    pub const fn server_tls(&self) -> &PemFiles {
        &self.server_tls
    }

    /// Starts the server on the objects' folder, and waits until it has read them.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_server(&self, flags: &[&str]) -> Result<Server> {
        let mut server = self.launch_server(&self.server_tls, flags)?;
        server.ready()?;
        Ok(server)
    }

    /// Starts a server like [`Self::start_server`], with other certificates and without waiting.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn launch_server(&self, tls: &PemFiles, flags: &[&str]) -> Result<Server> {
        let base = format!("--role-base-arn={BASE_ARN}");
        let options = ServerOptions {
            tls,
            source: Source::Files(self.objects.folder().to_owned()),
            node_authorization: "certificate",
            sts_url: &self.sts.url(),
            sts_keys: &self.sts.server_keys(),
            flags: &[&[base.as_str()], flags].concat(),
            starter: &[],
        };
        Server::start(&self.programs, self.sandbox.control(), &options)
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn node(&self, name: &str, options: NodeOptions) -> Result<FileClusterNode> {
        let node = self.sandbox.node(name, options)?;
        Ok(FileClusterNode {
            agents: AtomicU32::new(0),
            imds: Imds::start(node.listen_at_metadata_service()?)?,
            tls: self
                .authority
                .write_node(&self.sandbox.folder(name)?, name)?,
            node,
        })
    }

    /// Starts a node's agent, and waits until it knows its pods.
    ///
    /// # Errors
    /// When it does not start, or knows no pods in time.
    pub fn start_agent(&self, node: &FileClusterNode, flags: &[&str]) -> Result<Agent> {
        let mut agent = self.launch_agent(node, &node.tls, flags)?;
        agent.ready()?;
        Ok(agent)
    }

    /// Starts an agent like [`Self::start_agent`], with other certificates and without waiting.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn launch_agent(
        &self,
        node: &FileClusterNode,
        tls: &PemFiles,
        flags: &[&str],
    ) -> Result<Agent> {
        self.launch_agent_of(&self.programs, node, tls, flags)
    }

    /// Starts an agent like [`Self::launch_agent`], of other programs.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn launch_agent_of(
        &self,
        programs: &Programs,
        node: &FileClusterNode,
        tls: &PemFiles,
        flags: &[&str],
    ) -> Result<Agent> {
        // One may be started while another still ends.
        let number = node.agents.fetch_add(1, Ordering::Relaxed) + 1;
        let place = node.node.service(&format!("kiam-agent-{number}"))?;
        let options = AgentOptions {
            tls,
            token_file: None,
            server: SERVER_ADDRESS,
            flags,
            starter: &[],
        };
        Agent::start(programs, &node.node, &place, &options)
    }

    /// Makes a pod and adds it to the cluster's objects.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn pod(
        &self,
        node: &FileClusterNode,
        name: PodName<'_>,
        role: Option<&str>,
    ) -> Result<Pod> {
        let pod = node.node.pod(PodOptions::default())?;
        self.objects.put_pod(&pod, name, role)?;
        Ok(pod)
    }
}

impl FileClusterNode {
    /// The node.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// Its own metadata service.
    pub const fn imds(&self) -> &Imds {
        &self.imds
    }

    /// The certificate of its agent.
    pub const fn tls(&self) -> &PemFiles {
        &self.tls
    }
}

/// Namespace and name of a pod.
pub type PodName<'a> = (&'a str, &'a str);

/// The cluster's objects: one YAML file each, in a folder that the server watches.
#[derive(Debug)]
pub struct Objects(PathBuf);

impl Objects {
    fn new(folder: &Path) -> Result<Self> {
        Ok(Self(folder.to_owned()))
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Writes a namespace; `permitted` is its annotation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_namespace(&self, name: &str, permitted: Option<&str>) -> Result<()> {
        let annotations = annotations("iam.amazonaws.com/permitted", permitted);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "annotations": annotations },
        });
        self.put(&format!("namespace-{name}"), &object)
    }

    /// Writes a running pod; `role` is its annotation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_pod(
        &self,
        pod: &Pod,
        (namespace, name): PodName<'_>,
        role: Option<&str>,
    ) -> Result<()> {
        let ips = [
            pod.ip().map(|ip| ip.to_string()),
            pod.ipv6().map(|ip| ip.to_string()),
        ];
        let ips: Vec<_> = ips
            .into_iter()
            .flatten()
            .map(|ip| json!({ "ip": ip }))
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": pod.uid(),
                "annotations": annotations("iam.amazonaws.com/role", role),
            },
            "spec": { "nodeName": pod.node().name(), "serviceAccountName": "default", "hostNetwork": pod.is_host_network() },
            "status": { "phase": "Running", "podIPs": ips },
        });
        self.put(&pod_file((namespace, name)), &object)
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_pod(&self, name: PodName<'_>) -> Result<()> {
        let path = self.path(&pod_file(name));
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Writes an object's file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, file: &str, object: &Value) -> Result<()> {
        let yaml = serde_saphyr::to_string(object).context("cannot write YAML")?;
        self.put_text(file, &yaml)
    }

    /// Writes any text as a file of objects, as a whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        let beside = path.with_extension("new");
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// An object's file.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(format!("{file}.yaml"))
    }
}

/// A pod's file, of those in [`Objects::folder`].
pub fn pod_file((namespace, name): PodName<'_>) -> String {
    format!("pod-{namespace}-{name}")
}

fn annotations(key: &str, value: Option<&str>) -> Value {
    value.map_or_else(|| json!({}), |value| json!({ key: value }))
}
