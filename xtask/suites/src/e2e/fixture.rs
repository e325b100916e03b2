//! Fixture of the checks: a control plane, a server, two nodes, an agent on the first, and three
//! namespaces.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use toolchain::MOTO;

use super::prometheus::Prometheus;
use super::report::Facts;
use testbed::cluster::{ControlPlane, Kubelet, Objects, PodTemplate, Running};
use testbed::doubles::imds::Imds;
use testbed::doubles::sigv4::Keys;
use testbed::file_cluster::BASE_ARN;
use testbed::kiam::{
    Agent, AgentOptions, Programs, SERVER_ADDRESS, SERVER_ADMIN_PORT, Server, ServerOptions, Source,
};
use testbed::pki::{Authority, Leaf, PemFiles};
use testbed::probe;
use testbed::sandbox::{Finished, NodeOptions, Place, Program, Sandbox, run};
use testbed::sdk::Sdk;

/// kiam's rights, as they are shipped.
const RBAC: &str = include_str!("../../../../deploy/manifests/rbac.yaml");
pub(super) const SYSTEM: &str = "kube-system";
pub(super) const SERVER_ACCOUNT: &str = "kiam-server";
pub(super) const AGENT_ACCOUNT: &str = "kiam-agent";
pub(super) const AUDIENCE: &str = "kiam-server";
pub(super) const MOTO_URL: &str = "http://10.0.0.1:4566";
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// The annotations that kiam reads.
pub(super) const ROLE: &str = "iam.amazonaws.com/role";
pub(super) const PERMITTED: &str = "iam.amazonaws.com/permitted";

/// Namespaces and the roles that they permit.
const NAMESPACES: [(&str, Option<&str>); 3] = [
    ("orders", Some("arn:aws:iam::123456789012:role/orders-.*")),
    ("billing", Some(".*")),
    ("newcomers", None),
];

/// A cluster with kiam in it.
#[derive(Debug)]
pub struct Fixture {
    // In the order in which they are dropped.
    pub(super) agent: Agent,
    pub(super) agent_pod: Running,
    pub(super) pods: Vec<Running>,
    server: Option<Server>,
    kubeconfig: PathBuf,
    server_tls: PemFiles,
    pub(super) imds: Vec<Imds>,
    pub(super) kubelets: [Kubelet; 2],
    pub(super) objects: Objects,
    pub(super) tls: PemFiles,
    pub(super) programs: Programs,
    moto: Program,
    pub(super) prometheus: Prometheus,
    pub(super) plane: ControlPlane,
    pub(super) sandbox: Sandbox,
}

impl Fixture {
    /// Starts everything.
    ///
    /// # Errors
    /// Fails when a part does not start.
    pub async fn begin(sandbox: &Sandbox, programs: &Programs) -> Result<Self> {
        let mut plane = ControlPlane::start(sandbox)?;
        let moto = start_moto(sandbox)?;
        let objects = Objects::new(plane.ready().await?);
        objects
            .apply(RBAC)
            .await
            .context("the shipped RBAC rules")?;
        for (name, permitted) in NAMESPACES {
            let permitted = permitted.map(|permitted| (PERMITTED, permitted));
            objects.namespace(name, permitted.as_slice()).await?;
        }

        let mut imds = Vec::new();
        let mut kubelets = Vec::new();
        for name in ["node-1", "node-2"] {
            let node = sandbox.node(name, NodeOptions::default())?;
            imds.push(Imds::start(node.listen_at_metadata_service()?)?);
            kubelets.push(Kubelet::register(objects.clone(), node).await?);
        }
        let kubelets: [Kubelet; 2] = kubelets.try_into().ok().context("two nodes")?;

        let authority = Authority::new("kiam")?;
        let server_tls = authority.write_server(&sandbox.folder("server")?)?;
        // All agents have one certificate: the token identifies the node.
        let leaf = Leaf {
            name: "kiam-agent",
            alternative_names: &["kiam-agent"],
            ..Leaf::default()
        };
        let tls = authority.write(&sandbox.folder("agent")?, &leaf)?;

        let prometheus = Prometheus::start(sandbox, kubelets[0].node())?;
        moto_ready(&moto).await?;
        let kubeconfig = write_kubeconfig(sandbox, &plane, &objects).await?;
        let agent_pod = run_agent_pod(&kubelets[0]).await?;
        let token = project(&kubelets[0], &agent_pod, sandbox).await?;
        let agent = start_agent(programs, &kubelets[0], &agent_pod, &tls, &token, &[])?;
        let mut fixture = Self {
            agent,
            agent_pod,
            pods: Vec::new(),
            server: None,
            kubeconfig,
            server_tls,
            imds,
            kubelets,
            objects,
            tls,
            programs: programs.clone(),
            moto,
            prometheus,
            plane,
            sandbox: sandbox.clone(),
        };
        fixture.start_server()?;
        fixture.agent.ready()?;
        let log = fixture.agent.program().output();
        ensure!(
            log.contains("the agent's own connection reached the agent"),
            "the agent was ready without a connection of its own: {log}"
        );
        Ok(fixture)
    }

    /// Version of Kubernetes, and the names of the nodes.
    pub(super) async fn facts(&self) -> Result<Facts> {
        let version = self.objects.client().apiserver_version().await?;
        let nodes = self
            .kubelets
            .each_ref()
            .map(|kubelet| kubelet.node().name());
        Ok(vec![format!(
            "Kubernetes {}, the nodes {}",
            version.git_version,
            nodes.join(", ")
        )])
    }

    /// Last lines of the logs of all programs.
    #[must_use]
    pub fn logs(&self) -> String {
        let server = self.server.as_ref().map(Server::program);
        let programs = server.into_iter().chain([self.agent.program(), &self.moto]);
        let tails = programs.map(|program| format!("{}:\n{}", program.name(), program.tail()));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Process and log of the server.
    pub(super) fn server(&self) -> Result<&Program> {
        let server = self.server.as_ref().context("the server was stopped")?;
        Ok(server.program())
    }

    /// Response of the server's admin port to a path.
    pub(super) fn server_operator(&self, path: &str) -> Result<probe::Answer> {
        let server = self.server.as_ref().context("the server was stopped")?;
        server.admin(path)
    }

    /// Starts the server and waits until it has read the cluster.
    pub(super) fn start_server(&mut self) -> Result<()> {
        self.start_server_with(&[])
    }

    /// The same, with more flags.
    pub(super) fn start_server_with(&mut self, more: &[&str]) -> Result<()> {
        let base = format!("--role-base-arn={BASE_ARN}");
        // moto takes any keys for those of its account's owner.
        let keys = Keys {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let flags: Vec<_> = [base.as_str()].iter().chain(more).copied().collect();
        let options = ServerOptions {
            tls: &self.server_tls,
            source: Source::Kubernetes(self.kubeconfig.clone()),
            node_authorization: "token",
            sts_url: MOTO_URL,
            sts_keys: &keys,
            flags: &flags,
            starter: &[],
        };
        let server = Server::start(&self.programs, self.sandbox.control(), &options)?;
        self.server.insert(server).ready()
    }

    /// Stops the server, also when it has to close connections that clients keep open.
    pub(super) fn end_server(&mut self) -> Result<()> {
        let server = self.server.take().context("the server was stopped")?;
        server.stop().map(drop)
    }

    /// Stops the server in order.
    pub(super) fn stop_server(&mut self) -> Result<()> {
        let server = self.server.take().context("the server was stopped")?;
        in_order(&server.stop()?)
    }

    /// Stops everything in order.
    ///
    /// # Errors
    /// Fails when something does not stop in time.
    pub fn end(self) -> Result<()> {
        let Self {
            agent,
            pods,
            server,
            plane,
            ..
        } = self;
        in_order(&agent.stop()?)?;
        server.map_or(Ok(()), |server| in_order(&server.stop()?))?;
        drop(pods);
        plane.stop()
    }

    /// Runs a pod on the first node, until the fixture ends.
    pub(super) async fn pod(&mut self, template: &PodTemplate<'_>) -> Result<Place> {
        let pod = self.kubelets[0].run(template).await?;
        let place = pod.place().clone();
        self.pods.push(pod);
        Ok(place)
    }

    /// Runs an SDK in a place to print its caller identity.
    pub(super) fn caller_identity(&self, sdk: Sdk, place: &Place) -> Result<Finished> {
        let mut command = sdk.who(|program| place.command(program));
        command
            .env("HOME", self.sandbox.folder("home")?)
            .env("AWS_ENDPOINT_URL_STS", MOTO_URL);
        run(sdk.name(), command, LIMIT)
    }

    /// Output of `kiam-server explain pod` with the server's own rights, and how it ends.
    pub(super) fn explain(&self, pod: &str, flags: &[&str]) -> Result<Finished> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let server = format!("--server=127.0.0.1:{SERVER_ADMIN_PORT}");
        let mut args = vec!["explain", "pod", pod, &kubeconfig, &server];
        args.extend(flags);
        let folders: Vec<_> = self.kubeconfig.parent().into_iter().collect();
        let programs = &self.programs;
        let command = programs.server_tool(self.sandbox.control(), &args, &folders)?;
        run("kiam-server explain", command, LIMIT)
    }

    /// An agent's pod on a node, and its token.
    pub(super) async fn agent_pod(&self, kubelet: &Kubelet) -> Result<(Running, PathBuf)> {
        let pod = run_agent_pod(kubelet).await?;
        let token = project(kubelet, &pod, &self.sandbox).await?;
        Ok((pod, token))
    }

    /// Starts an agent in its pod.
    pub(super) fn start_agent(
        &self,
        kubelet: &Kubelet,
        pod: &Running,
        token: &Path,
        flags: &[&str],
    ) -> Result<Agent> {
        let (programs, tls) = (&self.programs, &self.tls);
        start_agent(programs, kubelet, pod, tls, token, flags)
    }

    /// A client with the rights of a service account, by namespace and name.
    pub(super) async fn client_of(&self, account: (&str, &str)) -> Result<kube::Client> {
        let token = self.objects.token(account, None, None).await?;
        self.plane.client_with_token(&token).await
    }
}

pub(super) fn start_moto(sandbox: &Sandbox) -> Result<Program> {
    let mut command = sandbox.control().command(MOTO.program("moto_server"));
    command
        .env_clear()
        .env("HOME", sandbox.folder("moto")?)
        .args(["--host", "10.0.0.1", "--port", "4566"]);
    Program::start("moto", command)
}

pub(super) async fn moto_ready(moto: &Program) -> Result<()> {
    let url = format!("{MOTO_URL}/moto-api/data.json").parse()?;
    let deadline = Instant::now() + LIMIT;
    while probe::fetch(&http::Method::GET, &url, &[]).await.is_err() {
        ensure!(
            Instant::now() < deadline,
            "moto does not answer:\n{}",
            moto.tail()
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn write_kubeconfig(
    sandbox: &Sandbox,
    plane: &ControlPlane,
    objects: &Objects,
) -> Result<PathBuf> {
    let folder = sandbox.folder("server")?;
    let (kubeconfig, token_file) = (folder.join("kubeconfig"), folder.join("token"));
    let token = objects.token((SYSTEM, SERVER_ACCOUNT), None, None).await?;
    std::fs::write(&token_file, token).context("cannot write the server's token")?;
    plane.kubeconfig(&kubeconfig, &token_file)?;
    Ok(kubeconfig)
}

fn in_order(ended: &Finished) -> Result<()> {
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// Runs the agent's pod as the DaemonSet's controller and the kubelet would.
async fn run_agent_pod(kubelet: &Kubelet) -> Result<Running> {
    let name = format!("kiam-agent-{}", kubelet.node().name());
    let template = PodTemplate {
        namespace: SYSTEM,
        name: &name,
        service_account: AGENT_ACCOUNT,
        host_network: true,
        ..PodTemplate::default()
    };
    kubelet.run(&template).await
}

async fn project(kubelet: &Kubelet, pod: &Running, sandbox: &Sandbox) -> Result<PathBuf> {
    let folder = sandbox.folder(&format!("token-{}", pod.uid()))?;
    kubelet
        .project_token(pod, AGENT_ACCOUNT, AUDIENCE, &folder)
        .await
}

fn start_agent(
    programs: &Programs,
    kubelet: &Kubelet,
    pod: &Running,
    tls: &PemFiles,
    token: &Path,
    flags: &[&str],
) -> Result<Agent> {
    // As the manifests have it by the downward API.
    let own = format!("--pod-uid={}", pod.uid());
    let options = AgentOptions {
        tls,
        token_file: Some(token),
        server: SERVER_ADDRESS,
        flags: &[flags, &[&own]].concat(),
        starter: &[],
    };
    Agent::start(programs, kubelet.node(), pod.place(), &options)
}
