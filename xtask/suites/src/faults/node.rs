//! A node of the small cluster: its kubelet, its agent in an agent's pod, and the settings by
//! which its agent finds the server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::clock::Clock;
use testbed::cluster::{Kubelet, PodTemplate, Running};
use testbed::doubles::imds::Imds;
use testbed::kiam::{Agent, AgentOptions, Programs};
use testbed::pki::PemFiles;
use testbed::sandbox::{Netns, Program, Sandbox};

const SYSTEM: &str = "kube-system";
const ACCOUNT: &str = "kiam-agent";
const AUDIENCE: &str = "kiam-server";
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A node.
#[derive(Debug)]
pub(super) struct FaultNode {
    agent: Option<Agent>,
    starts: u32,
    pod: Running,
    token: PathBuf,
    pub(super) tls: PemFiles,
    pub(super) clock: Clock,
    starter: Vec<String>,
    logs: PathBuf,
    programs: Programs,
    pub(super) imds: Imds,
    pub(super) kubelet: Kubelet,
}

impl FaultNode {
    /// Runs the agent's pod on a node; the agent itself is started by [`Self::start`].
    pub(super) async fn new(
        kubelet: Kubelet,
        imds: Imds,
        tls: PemFiles,
        programs: &Programs,
        sandbox: &Sandbox,
    ) -> Result<Self> {
        let name = kubelet.node().name().to_owned();
        let pod_name = format!("kiam-agent-{name}");
        let template = PodTemplate {
            namespace: SYSTEM,
            name: &pod_name,
            service_account: ACCOUNT,
            host_network: true,
            ..PodTemplate::default()
        };
        let pod = kubelet.run(&template).await?;
        let folder = sandbox.folder(&format!("token-{name}"))?;
        let token = kubelet
            .project_token(&pod, ACCOUNT, AUDIENCE, &folder)
            .await?;
        let clock = Clock::new(&sandbox.folder(&format!("clock-{name}"))?)?;
        Ok(Self {
            agent: None,
            starts: 0,
            pod,
            token,
            tls,
            starter: starter(&sandbox.folder("etc")?, &clock)?,
            clock,
            logs: sandbox.folder("logs")?,
            programs: programs.clone(),
            imds,
            kubelet,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.kubelet.node().name()
    }

    pub(super) fn netns(&self) -> &Netns {
        self.kubelet.node().place().netns()
    }

    /// Path of the agent's token.
    pub(super) fn token(&self) -> &Path {
        &self.token
    }

    pub(super) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent was stopped")
    }

    /// The agent's process.
    pub(super) fn program(&self) -> Result<&Program> {
        Ok(self.agent()?.program())
    }

    /// Starts an agent, and forgets the one before without stopping it.
    pub(super) fn start(&mut self) -> Result<Option<Agent>> {
        self.starts += 1;
        let place = self.pod.pod().add_container(&format!("{}", self.starts))?;
        let options = AgentOptions {
            tls: &self.tls,
            token_file: Some(&self.token),
            server: "kiam-server:9610",
            flags: &["--level=info,kiam_agent=debug"],
            starter: &self.starter,
        };
        let node = self.kubelet.node();
        let agent = Agent::start(&self.programs, node, place.place(), &options)?;
        let log = format!("{}-{}.log", node.name(), self.starts);
        agent.program().tee(&self.logs.join(log))?;
        Ok(self.agent.replace(agent))
    }

    /// Waits until the agent logs that it is ready.
    pub(super) fn ready(&self) -> Result<()> {
        let ready = |line: &str| line.ends_with("ready").then_some(());
        self.program()?
            .wait_for("that it is ready", READY_LIMIT, ready)
    }

    /// Starts another agent beside the running one, and then stops the older.
    pub(super) fn upgrade(&mut self) -> Result<()> {
        let before = self.start()?;
        self.ready()?;
        before.map_or(Ok(()), |before| before.stop().map(drop))
    }

    /// Kills the agent.
    pub(super) fn kill(&mut self) -> Result<()> {
        let agent = self.agent.take().context("the agent was stopped")?;
        agent.program().signal(Signal::SIGKILL)
    }

    /// Kills the agent if it has not ended by itself.
    pub(super) fn kill_or_clear(&mut self) {
        self.agent = None;
    }

    /// Stops everything in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.agent
            .take()
            .map_or(Ok(()), |agent| agent.stop().map(drop))
    }
}

/// Command that starts an agent: with a view of the file system in which the cluster's DNS is its
/// resolver, and with a clock.
fn starter(etc: &Path, clock: &Clock) -> Result<Vec<String>> {
    let resolv = etc.join("resolv.conf");
    std::fs::write(&resolv, "nameserver 10.0.0.1\noptions ndots:5\n")
        .context("cannot write resolv.conf")?;
    let script = format!(
        "/bin/mount --bind {} /etc/resolv.conf && exec {} \"$@\"",
        resolv.display(),
        clock.shell()
    );
    let words = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", &script, "sh"];
    Ok(words.map(str::to_owned).to_vec())
}
