//! Fixture of the faults, a small cluster: etcd, kube-apiserver, STS, DNS, two servers, three nodes
//! with an agent each, and thirty pods that send requests all the time.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::SignedDuration;
use tokio::time::Instant;
use toolchain::exec;

use super::client::{self, Client, Kind};
use super::node::FaultNode;
use super::servers::{ADDRESSES, Servers};
use pod_client::ask::Attempt;
use testbed::cluster::{ControlPlane, Kubelet, Objects, PodTemplate};
use testbed::doubles::dns::{Dns, Reply};
use testbed::doubles::imds::Imds;
use testbed::doubles::proxy::Proxy;
use testbed::doubles::sts::{Behavior, Sts};
use testbed::file_cluster::BASE_ARN;
use testbed::kiam::{Programs, SERVER_PORT};
use testbed::pki::{Authority, Leaf};
use testbed::sandbox::{CONTROL_IP, NodeOptions, Program, Sandbox};

/// kiam's rights, as they are shipped.
const RBAC: &str = include_str!("../../../../deploy/manifests/rbac.yaml");
const STS_PORT: u16 = 4566;
/// Port at which servers reach the API, through a proxy.
const API_PROXY_PORT: u16 = 6444;
/// Port of the servers while connections to them are slow, in place of [`SERVER_PORT`].
pub(super) const SLOW_PORT: u16 = 9710;
const NODES: usize = 3;
const PODS: usize = 30;
/// Number of pods with an SDK on each node.
const SDKS: usize = 1;
const PAUSE: Duration = Duration::from_millis(100);

/// The annotations that kiam reads.
pub(super) const ROLE: &str = "iam.amazonaws.com/role";
pub(super) const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// The namespaces of the pods: one of each is another's.
pub(super) const NAMESPACES: [&str; 2] = ["team", "shop"];

/// The cluster.
#[derive(Debug)]
pub(super) struct Fixture {
    // In the order in which they are dropped.
    pub(super) clients: Vec<Client>,
    pub(super) nodes: Vec<FaultNode>,
    pub(super) servers: Servers,
    pub(super) api_way: Proxy,
    pub(super) slow_ways: Vec<Proxy>,
    pub(super) dns: Dns,
    pub(super) sts: Arc<Sts>,
    pub(super) authority: Authority,
    pub(super) objects: Objects,
    pub(super) plane: ControlPlane,
    /// Lifetime of the credentials that STS issues.
    life: Duration,
    pods: u32,
    /// Objects of pods that do not run any more.
    pub(super) left: Vec<(String, String)>,
    /// Session tokens that pods were given.
    pub(super) tokens: Vec<String>,
    /// Error replies that pods got in place of credentials.
    pub(super) error_replies: Vec<String>,
    pub(super) sandbox: Sandbox,
}

impl Fixture {
    pub(super) async fn begin(
        sandbox: &Sandbox,
        programs: &Programs,
        life: Duration,
    ) -> Result<Self> {
        let mut plane = ControlPlane::start(sandbox)?;
        let control = sandbox.control().netns();
        exec(std::process::Command::new("ip").args([
            "-n",
            control.name(),
            "addr",
            "add",
            "10.0.0.2/16",
            "dev",
            "fabric",
        ]))?;
        let sts = Sts::start(control.listen(SocketAddr::new(CONTROL_IP, STS_PORT))?)?;
        let socket = control.run(|| UdpSocket::bind((CONTROL_IP, 53)))?;
        let dns = Dns::start(socket.context("cannot bind port 53")?, here())?;
        let at = SocketAddr::new(CONTROL_IP, API_PROXY_PORT);
        let api_way = Proxy::start(control, control.listen(at)?, plane.address())?;
        let slow = |address: Ipv4Addr| {
            let at = SocketAddr::new(address.into(), SLOW_PORT);
            let target = SocketAddr::new(address.into(), SERVER_PORT);
            Proxy::start(control, control.listen(at)?, target)
        };
        let slow_ways = ADDRESSES.map(slow).into_iter().collect::<Result<_>>()?;

        let objects = Objects::new(plane.ready().await?);
        objects
            .apply(RBAC)
            .await
            .context("the shipped RBAC rules")?;
        for name in NAMESPACES {
            objects.namespace(name, &[(PERMITTED, ".*")]).await?;
        }
        let authority = Authority::new("kiam")?;
        let logs = sandbox.folder("logs")?;
        sandbox.folder("disk")?;
        let servers = Servers::new(
            sandbox.control().clone(),
            programs.clone(),
            authority.write_server(&sandbox.folder("server")?)?,
            kubeconfig(sandbox, &plane, &objects).await?,
            (sts.url(), sts.server_keys()),
            logs,
        )?;
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let node = sandbox.node(&format!("node-{number}"), NodeOptions::default())?;
            let imds = Imds::start(node.listen_at_metadata_service()?)?;
            let tls = authority.write(&sandbox.folder(&format!("tls-{number}"))?, &AGENT)?;
            let kubelet = Kubelet::register(objects.clone(), node).await?;
            nodes.push(FaultNode::new(kubelet, imds, tls, programs, sandbox).await?);
        }
        let mut fixture = Self {
            clients: Vec::new(),
            nodes,
            servers,
            api_way,
            slow_ways,
            dns,
            sts: Arc::new(sts),
            authority,
            objects,
            plane,
            life,
            pods: 0,
            left: Vec::new(),
            tokens: Vec::new(),
            error_replies: Vec::new(),
            sandbox: sandbox.clone(),
        };
        fixture.start().await?;
        Ok(fixture)
    }

    async fn start(&mut self) -> Result<()> {
        self.sts_behaves(|_| ());
        for which in [0, 1] {
            self.servers.start(which)?;
        }
        for which in [0, 1] {
            self.servers.ready(which)?;
        }
        for node in &mut self.nodes {
            node.start()?;
        }
        for node in &self.nodes {
            node.ready()?;
        }
        for number in 0..PODS {
            let kind = if number / NODES < SDKS {
                Kind::Sdk
            } else {
                Kind::Fast
            };
            self.client(number, kind).await?;
        }
        Ok(())
    }

    async fn client(&mut self, number: usize, kind: Kind) -> Result<()> {
        let (name, role) = (format!("pod-{number}"), format!("role-{number}"));
        let template = PodTemplate {
            namespace: NAMESPACES[usize::from(number % 5 == 4)],
            name: &name,
            annotations: &[(ROLE, &role)],
            ..PodTemplate::default()
        };
        let pod = self.nodes[number % NODES].kubelet.run(&template).await?;
        self.clients
            .push(Client::start(pod, &role, kind, &self.sts.url())?);
        Ok(())
    }

    /// Runs a pod with a fast client on a node, until the fault is over.
    pub(super) async fn pod(&mut self, which: usize, name: &str, role: &str) -> Result<()> {
        self.pod_at(which, name, role, None).await
    }

    /// Like [`Self::pod`], at an address that was another pod's.
    pub(super) async fn pod_at(
        &mut self,
        which: usize,
        name: &str,
        role: &str,
        ip: Option<Ipv4Addr>,
    ) -> Result<()> {
        let template = PodTemplate {
            namespace: NAMESPACES[0],
            name,
            annotations: &[(ROLE, role)],
            ..PodTemplate::default()
        };
        let kubelet = &self.nodes[which].kubelet;
        let object = self.objects.pod(&template).await?;
        self.objects
            .bind(template.namespace, name, kubelet.node().name())
            .await?;
        let pod = kubelet.start_at(&object, ip).await?;
        kubelet.report(&pod).await?;
        let client = Client::start(pod, role, Kind::Fast, &self.sts.url())?;
        self.clients.push(client);
        Ok(())
    }

    /// Ends the pods that were made for a fault.
    pub(super) async fn tidy(&mut self) -> Result<()> {
        for client in self.clients.split_off(PODS) {
            let kubelet = &self.nodes[0].kubelet;
            kubelet.stop(client.end()).await?;
        }
        Ok(())
    }

    /// Waits until STS has answered well to the last call for each pod's role, or a while at most:
    /// a server retries a denied call after 15 s or more. The next fault then finds all
    /// credentials with at least half of their life, and not those that another failure has aged.
    pub(super) async fn renewed(&self) {
        const LIMIT: Duration = Duration::from_secs(60);
        let roles: Vec<_> = (0..PODS)
            .map(|number| format!("{BASE_ARN}role-{number}"))
            .collect();
        let failing = || {
            let calls = self.sts.calls();
            roles.iter().any(|role| {
                let last = calls.iter().rfind(|call| call.role == *role);
                last.is_some_and(|call| call.result.is_err())
            })
        };
        let end = Instant::now() + LIMIT;
        while failing() && Instant::now() < end {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A number that was not used before.
    pub(super) const fn fresh(&mut self) -> u32 {
        self.pods += 1;
        self.pods
    }

    /// Sets STS's behavior, but for the life of its credentials.
    pub(super) fn sts_behaves(&self, change: impl FnOnce(&mut Behavior)) {
        let mut behavior = self.usual();
        change(&mut behavior);
        self.sts.behave(None, behavior);
    }

    /// Behavior of STS while nothing is broken.
    pub(super) fn usual(&self) -> Behavior {
        Behavior {
            lifetime: SignedDuration::try_from(self.life).ok(),
            ..Behavior::default()
        }
    }

    /// Runs a new pod with a new role on each node, until it has its credentials. Returns how long
    /// the last took.
    pub(super) async fn canaries(&mut self, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let mut flying: Vec<(usize, Program, testbed::cluster::Running)> = Vec::new();
        for which in 0..self.nodes.len() {
            let pod = loop {
                match self.canary(which).await {
                    Ok(pod) => break pod,
                    Err(error) if begin.elapsed() > limit => return Err(error),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            };
            let command = client::fast(pod.place(), &["--interval=100"])?;
            flying.push((which, Program::start("a canary", command)?, pod));
        }
        let served = flying.iter().try_for_each(|(which, program, _)| {
            let left = limit.saturating_sub(begin.elapsed());
            let name = self.nodes[*which].name();
            let outcome = program.wait_for("credentials", left, credentials);
            outcome.with_context(|| format!("a new pod on {name}"))
        });
        let took = begin.elapsed();
        for (which, program, pod) in flying {
            drop(program);
            self.nodes[which].kubelet.stop(pod).await?;
        }
        served.map(|()| took)
    }

    async fn canary(&mut self, which: usize) -> Result<testbed::cluster::Running> {
        let name = format!("canary-{}", self.fresh());
        let template = PodTemplate {
            namespace: NAMESPACES[0],
            name: &name,
            annotations: &[(ROLE, &name)],
            ..PodTemplate::default()
        };
        self.nodes[which].kubelet.run(&template).await
    }

    /// Stops everything in order, and checks that no packet reached the nodes' own metadata
    /// services.
    pub(super) fn end(mut self) -> Result<()> {
        self.clients.clear();
        for node in &mut self.nodes {
            node.stop()?;
            let bytes = node.imds.traffic().bytes();
            let name = node.name();
            ensure!(
                bytes == 0,
                "{bytes} bytes reached the metadata service of {name}"
            );
        }
        for which in [0, 1] {
            self.servers.stop(which)?;
        }
        Ok(())
    }
}

/// Parses a client's line that reports credentials.
fn credentials(line: &str) -> Option<()> {
    let attempt: Attempt = serde_json::from_str(line).ok()?;
    attempt.key.map(drop)
}

/// All agents have one certificate: the token identifies the node.
pub(super) const AGENT: Leaf<'_> = Leaf {
    name: "kiam-agent",
    organization: None,
    alternative_names: &["kiam-agent"],
    expired: false,
};

/// DNS records while nothing is broken.
pub(super) fn here() -> Reply {
    Reply::Addresses(ADDRESSES.to_vec())
}

async fn kubeconfig(sandbox: &Sandbox, plane: &ControlPlane, objects: &Objects) -> Result<PathBuf> {
    let folder = sandbox.folder("server")?;
    let (kubeconfig, token_file) = (folder.join("kubeconfig"), folder.join("token"));
    let token = objects
        .token(("kube-system", "kiam-server"), None, None)
        .await?;
    std::fs::write(&token_file, token).context("cannot write the server's token")?;
    plane.kubeconfig(&kubeconfig, &token_file)?;
    let direct = std::fs::read_to_string(&kubeconfig)?;
    let proxy = SocketAddr::new(CONTROL_IP, API_PROXY_PORT).to_string();
    std::fs::write(
        &kubeconfig,
        direct.replace(&plane.address().to_string(), &proxy),
    )?;
    Ok(kubeconfig)
}
