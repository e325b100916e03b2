//! A cluster of two nodes, with kiam at work in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf::workspace;
use crate::cluster::{ControlPlane, Kubelet, Objects, PodTemplate, Running};
use crate::doubles::sigv4::Keys;
use crate::kiam::{Agent, AgentOptions, Programs, SERVER_PORT, Server, ServerOptions, Source};
use crate::pki::{Authority, Leaf, PemFiles};
use crate::probe::{Answer, METADATA_SERVICE, Prober};
use crate::sandbox::{self, CONTROL_IP, NodeOptions, Place, Program, Sandbox};
use crate::setup::{AWS, MOTO};
use crate::stage::BASE_ARN;

const MOTO_PORT: u16 = 5000;
const LIMIT: Duration = Duration::from_secs(60);
/// How long what has changed may take to be seen.
const EVENTUALLY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(10);
/// Where pods ask for the name of their role.
pub(super) const LISTING: &str = "/latest/meta-data/iam/security-credentials/";

/// A cluster of two nodes, with kiam at work in it.
pub(super) struct World {
    // In the order in which they are dropped.
    pub(super) agents: Vec<Agent>,
    pub(super) pods: Vec<Running>,
    server: Option<Server>,
    agent_pods: Vec<Running>,
    kubelets: Vec<Kubelet>,
    objects: Option<Objects>,
    server_token: String,
    agent_tls: PemFiles,
    server_tls: PemFiles,
    moto: Program,
    pub(super) plane: ControlPlane,
    programs: Programs,
    pub(super) sandbox: Sandbox,
}

impl World {
    /// Starts the control plane and STS.
    pub(super) fn prepare(programs: &Programs) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let authority = Authority::new("kiam")?;
        let address = CONTROL_IP.to_string();
        let server = Leaf {
            name: "kiam-server",
            alternative_names: &["kiam-server", &address],
            ..Leaf::default()
        };
        // One certificate for all agents: the node is proved by the token.
        let agent = Leaf {
            name: "kiam-agent",
            alternative_names: &["kiam-agent"],
            ..Leaf::default()
        };
        let mut moto = sandbox.control().command(MOTO.program("moto_server"));
        moto.env_clear()
            .arg(format!("-H{CONTROL_IP}"))
            .arg(format!("-p{MOTO_PORT}"));
        Ok(Self {
            agents: Vec::new(),
            pods: Vec::new(),
            server: None,
            agent_pods: Vec::new(),
            kubelets: Vec::new(),
            objects: None,
            server_token: String::new(),
            agent_tls: authority.write(&sandbox.folder("agent")?, &agent)?,
            server_tls: authority.write(&sandbox.folder("server")?, &server)?,
            moto: Program::start("moto", moto)?,
            plane: ControlPlane::start(&sandbox)?,
            programs: programs.clone(),
            sandbox,
        })
    }

    /// Waits for the API, gives kiam its rights, and registers the nodes and the agents' pods.
    pub(super) async fn begin(&mut self) -> Result<()> {
        let client = self.plane.ready().await?;
        let found = |line: &str| line.contains("Running on").then_some(());
        self.moto.wait_for("moto to serve", LIMIT, found)?;
        let objects = Objects::new(client);
        let rbac = workspace().join("deploy/manifests/rbac.yaml");
        let rbac = std::fs::read_to_string(&rbac)
            .with_context(|| format!("cannot read {}", rbac.display()))?;
        // The API makes its own namespaces after it has become ready.
        let deadline = tokio::time::Instant::now() + EVENTUALLY;
        while let Err(error) = objects.apply(&rbac).await {
            ensure!(tokio::time::Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(PAUSE).await;
        }
        self.server_token = objects
            .token(("kube-system", "kiam-server"), None, None)
            .await?;
        for name in ["node-1", "node-2"] {
            let node = self.sandbox.node(name, NodeOptions::default())?;
            let kubelet = Kubelet::register(objects.clone(), node).await?;
            let agent = PodTemplate {
                namespace: "kube-system",
                name: &format!("kiam-agent-{name}"),
                service_account: "kiam-agent",
                host_network: true,
                ..PodTemplate::default()
            };
            self.agent_pods.push(kubelet.run(&agent).await?);
            self.kubelets.push(kubelet);
        }
        self.objects = Some(objects);
        Ok(())
    }

    pub(super) fn objects(&self) -> Result<&Objects> {
        self.objects.as_ref().context("the API has not served yet")
    }

    pub(super) fn kubelet(&self, node: usize) -> &Kubelet {
        &self.kubelets[node]
    }

    /// A client with the server's own rights.
    pub(super) async fn as_server(&self) -> Result<kube::Client> {
        self.plane.client_with_token(&self.server_token).await
    }

    pub(super) fn start_server(&mut self) -> Result<()> {
        let folder = self.sandbox.folder("server")?;
        let (token, kubeconfig) = (folder.join("api-token"), folder.join("kubeconfig"));
        std::fs::write(&token, &self.server_token).context("cannot write the server's token")?;
        self.plane.kubeconfig(&kubeconfig, &token)?;
        let options = ServerOptions {
            tls: &self.server_tls,
            source: Source::Kubernetes(kubeconfig),
            node_authorization: "token",
            sts_url: &sts_url(),
            sts_keys: &Keys {
                access_key: "AKIAKIAMSERVER".to_owned(),
                secret_key: "moto asks for none in particular".to_owned(),
                session_token: None,
            },
            flags: &[&format!("--role-base-arn={BASE_ARN}")],
        };
        let mut server = Server::start(&self.programs, self.sandbox.control(), &options)?;
        server.ready()?;
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn stop_server(&mut self) -> Result<()> {
        let stopped = self.server.take().context("there is no server")?.stop()?;
        ensure!(
            stopped.status.success(),
            "the server ended with {}",
            stopped.status
        );
        Ok(())
    }

    pub(super) fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("there is no server")
    }

    pub(super) fn server_tail(&self) -> String {
        self.server
            .as_ref()
            .map(|server| server.program().tail())
            .unwrap_or_default()
    }

    /// A token as the kubelet projects it into the agent's pod on a node.
    pub(super) async fn token(
        &self,
        node: usize,
        account: &str,
        audience: &str,
    ) -> Result<PathBuf> {
        let folder = self
            .sandbox
            .folder(&format!("token-{node}-{account}-{audience}"))?;
        let pod = &self.agent_pods[node];
        self.kubelets[node]
            .project_token(pod, account, audience, &folder)
            .await
    }

    /// Starts an agent in its pod on a node.
    pub(super) fn agent(&self, node: usize, token: &Path, flags: &[&str]) -> Result<Agent> {
        let options = AgentOptions {
            tls: &self.agent_tls,
            token_file: Some(token),
            server: (CONTROL_IP, SERVER_PORT),
            flags,
        };
        let place = self.agent_pods[node].place();
        Agent::start(&self.programs, self.kubelets[node].node(), place, &options)
    }

    /// Who the AWS CLI says that a pod is.
    pub(super) fn identity(&self, place: &Place) -> Result<String> {
        let mut command = place.command(AWS.program("aws"));
        command
            .args(["sts", "get-caller-identity", "--query=Arn", "--output=text"])
            .env_clear()
            .env("HOME", self.sandbox.folder("home")?)
            .env("AWS_DEFAULT_REGION", "eu-west-1")
            .env("AWS_ENDPOINT_URL_STS", sts_url());
        let ended = sandbox::run("aws", command, LIMIT)?;
        ensure!(ended.status.success(), "{}", ended.stderr.trim());
        Ok(ended.stdout.trim().to_owned())
    }

    /// Stops everything in order.
    pub(super) fn end(mut self) -> Result<()> {
        for agent in self.agents.drain(..) {
            agent.stop()?;
        }
        if self.server.is_some() {
            self.stop_server()?;
        }
        self.plane.stop()
    }
}

fn sts_url() -> String {
    format!("http://{CONTROL_IP}:{MOTO_PORT}")
}

/// What a pod is answered.
pub(super) fn ask(place: &Place, path: &str) -> Result<Answer> {
    let url = format!("{METADATA_SERVICE}{path}");
    Prober::this_program().get(place, &url)?.answer()
}

/// How long it takes until a pod is answered so.
pub(super) async fn until(
    place: &Place,
    path: &str,
    expected: impl Fn(&Answer) -> bool,
) -> Result<Duration> {
    let began = tokio::time::Instant::now();
    loop {
        let answer = ask(place, path)?;
        let took = began.elapsed();
        if expected(&answer) {
            return Ok(took);
        }
        ensure!(
            took < EVENTUALLY,
            "after {took:?} the answer is still {answer:?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// That a program logs a line with all of these, from here on.
pub(super) fn logs(program: &Program, mark: usize, parts: &[&str]) -> Result<()> {
    program.wait_for_after(mark, &parts.join(" … "), EVENTUALLY, |line| {
        parts.iter().all(|part| line.contains(part)).then_some(())
    })
}
