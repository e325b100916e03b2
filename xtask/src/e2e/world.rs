//! What the checks find: a control plane, a server, two nodes, an agent on the first.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use crate::cluster::{ControlPlane, Kubelet, Objects, PodTemplate, Running};
use crate::doubles::imds::Imds;
use crate::doubles::sigv4::Keys;
use crate::kiam::{Agent, AgentOptions, Programs, SERVER_PORT, Server, ServerOptions, Source};
use crate::pki::{Authority, Leaf, PemFiles};
use crate::probe;
use crate::sandbox::{CONTROL_IP, Finished, NodeOptions, Place, Program, Sandbox, run};
use crate::setup::{AWS, MOTO};
use crate::stage::BASE_ARN;

/// kiam's rights, as they are shipped.
const RBAC: &str = include_str!("../../../deploy/manifests/rbac.yaml");
const SYSTEM: &str = "kube-system";
const SERVER_ACCOUNT: &str = "kiam-server";
pub(super) const AGENT_ACCOUNT: &str = "kiam-agent";
pub(super) const AUDIENCE: &str = "kiam-server";
const MOTO_URL: &str = "http://10.0.0.1:4566";
const LIMIT: Duration = Duration::from_secs(60);
/// How long what has changed may take to be seen.
const EVENTUALLY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(30);

/// A cluster with kiam in it.
#[derive(Debug)]
pub struct World {
    // In the order in which they are dropped.
    pub(super) agent: Agent,
    pub(super) agent_pod: Running,
    pub(super) pods: Vec<Running>,
    pub(super) server: Server,
    pub(super) imds: Vec<Imds>,
    pub(super) kubelets: [Kubelet; 2],
    pub(super) objects: Objects,
    pub(super) tls: PemFiles,
    pub(super) programs: Programs,
    moto: Program,
    pub(super) plane: ControlPlane,
    pub(super) sandbox: Sandbox,
}

impl World {
    /// Starts everything.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn begin(sandbox: &Sandbox, programs: &Programs) -> Result<Self> {
        let mut plane = ControlPlane::start(sandbox)?;
        let moto = start_moto(sandbox)?;
        let objects = Objects::new(plane.ready().await?);
        objects
            .apply(RBAC)
            .await
            .context("the shipped RBAC rules")?;

        let mut imds = Vec::new();
        let mut kubelets = Vec::new();
        for name in ["node-1", "node-2"] {
            let node = sandbox.node(name, NodeOptions::default())?;
            imds.push(Imds::start(node.listen_at_metadata_service()?)?);
            kubelets.push(Kubelet::register(objects.clone(), node).await?);
        }
        let kubelets: [Kubelet; 2] = kubelets.try_into().ok().context("two nodes")?;

        let authority = Authority::new("kiam")?;
        let address = CONTROL_IP.to_string();
        let leaf = Leaf {
            name: "kiam-server",
            alternative_names: &["kiam-server", &address],
            ..Leaf::default()
        };
        let server_tls = authority.write(&sandbox.folder("server")?, &leaf)?;
        // All agents have one certificate: which node it is, the token tells.
        let leaf = Leaf {
            name: "kiam-agent",
            alternative_names: &["kiam-agent"],
            ..Leaf::default()
        };
        let tls = authority.write(&sandbox.folder("agent")?, &leaf)?;

        moto_ready(&moto).await?;
        let server = start_server(sandbox, programs, &plane, &objects, &server_tls).await?;
        let agent_pod = run_agent_pod(&kubelets[0]).await?;
        let token = project(&kubelets[0], &agent_pod, sandbox).await?;
        let agent = start_agent(programs, &kubelets[0], agent_pod.place(), &tls, &token)?;
        let mut world = Self {
            agent,
            agent_pod,
            pods: Vec::new(),
            server,
            imds,
            kubelets,
            objects,
            tls,
            programs: programs.clone(),
            moto,
            plane,
            sandbox: sandbox.clone(),
        };
        world.server.ready()?;
        world.agent.ready()?;
        Ok(world)
    }

    /// What the programs said last.
    #[must_use]
    pub fn logs(&self) -> String {
        let programs = [self.server.program(), self.agent.program(), &self.moto];
        programs
            .map(|program| format!("{}:\n{}", program.name(), program.tail()))
            .join("\n")
    }

    /// Stops everything in order.
    ///
    /// # Errors
    /// When something does not stop in time.
    pub fn end(self) -> Result<()> {
        let Self {
            agent,
            pods,
            server,
            plane,
            ..
        } = self;
        for ended in [agent.stop()?, server.stop()?] {
            ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        }
        drop(pods);
        plane.stop()
    }

    /// Runs a pod on the first node, until the world ends.
    pub(super) async fn pod(&mut self, template: &PodTemplate<'_>) -> Result<Place> {
        let pod = self.kubelets[0].run(template).await?;
        let place = pod.place().clone();
        self.pods.push(pod);
        Ok(place)
    }

    /// Who the AWS CLI is in a place.
    pub(super) fn caller_identity(&self, place: &Place) -> Result<Finished> {
        let mut command = place.command(AWS.program("aws"));
        command
            .args(["sts", "get-caller-identity", "--query=Arn", "--output=text"])
            .env_clear()
            .env("HOME", self.sandbox.folder("home")?)
            .env("AWS_DEFAULT_REGION", "eu-west-1")
            .env("AWS_ENDPOINT_URL_STS", MOTO_URL);
        run("the AWS CLI", command, LIMIT)
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
        token: &std::path::Path,
    ) -> Result<Agent> {
        start_agent(&self.programs, kubelet, pod.place(), &self.tls, token)
    }

    /// A client with the rights of one of kiam's service accounts.
    pub(super) async fn client_of(&self, account: &str) -> Result<kube::Client> {
        let token = self.objects.token((SYSTEM, account), None, None).await?;
        self.plane.client_with_token(&token).await
    }
}

/// Tries until it succeeds: what has changed takes its way through API, server and stream.
pub(super) async fn eventually<T>(mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        match check() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not so within {EVENTUALLY:?}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn start_moto(sandbox: &Sandbox) -> Result<Program> {
    let mut command = sandbox.control().command(MOTO.program("moto_server"));
    command
        .env_clear()
        .env("HOME", sandbox.folder("moto")?)
        .args(["--host", "10.0.0.1", "--port", "4566"]);
    Program::start("moto", command)
}

async fn moto_ready(moto: &Program) -> Result<()> {
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

async fn start_server(
    sandbox: &Sandbox,
    programs: &Programs,
    plane: &ControlPlane,
    objects: &Objects,
    tls: &PemFiles,
) -> Result<Server> {
    let folder = sandbox.folder("server")?;
    let (kubeconfig, token_file) = (folder.join("kubeconfig"), folder.join("token"));
    let token = objects.token((SYSTEM, SERVER_ACCOUNT), None, None).await?;
    std::fs::write(&token_file, token).context("cannot write the server's token")?;
    plane.kubeconfig(&kubeconfig, &token_file)?;
    let base = format!("--role-base-arn={BASE_ARN}");
    // moto takes any keys for those of its account's owner.
    let keys = Keys {
        access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        session_token: None,
    };
    let options = ServerOptions {
        tls,
        source: Source::Kubernetes(kubeconfig),
        node_authorization: "token",
        sts_url: MOTO_URL,
        sts_keys: &keys,
        flags: &[&base],
    };
    Server::start(programs, sandbox.control(), &options)
}

/// As the DaemonSet's controller would make it, and the kubelet run it.
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
    place: &Place,
    tls: &PemFiles,
    token: &std::path::Path,
) -> Result<Agent> {
    let options = AgentOptions {
        tls,
        token_file: Some(token),
        server: (CONTROL_IP, SERVER_PORT),
        flags: &[],
    };
    Agent::start(programs, kubelet.node(), place, &options)
}
