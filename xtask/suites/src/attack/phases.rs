//! Brings the agent into a state, and makes an attempt in it.

use std::path::Path;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::Phase;
use super::fixture::{Fixture, LIMIT};
use super::report::Load;
use pod_client::steady::{self, End};
use testbed::kiam::Agent;
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox::Program;

/// Role of the victim, which it requests while agents are replaced.
const OWN: &str = "/latest/meta-data/iam/security-credentials/b-writer";

/// The agent of the fixture's node, in its current state.
pub(super) struct Change<'a> {
    fixture: &'a Fixture,
    pod_client: &'a Path,
    agent: Option<Agent>,
    load: Load,
}

impl<'a> Change<'a> {
    pub(super) fn new(fixture: &'a Fixture, pod_client: &'a Path) -> Self {
        Self {
            fixture,
            pod_client,
            agent: None,
            load: Load::default(),
        }
    }

    /// A phase begins, with an agent that was at work before.
    pub(super) fn begin(&mut self, phase: Phase) -> Result<()> {
        if self.agent.is_none() {
            self.agent = Some(self.fixture.cluster.start_agent(&self.fixture.node, &[])?);
        }
        match phase {
            Phase::Down => {
                if let Some(agent) = self.agent.take() {
                    agent.stop()?;
                }
            }
            Phase::Killed => self.kill()?,
            Phase::Up | Phase::Starting | Phase::Upgrade => {}
        }
        Ok(())
    }

    /// Makes an attempt in a phase that has begun.
    pub(super) fn during<T>(
        &mut self,
        phase: Phase,
        attempt: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match phase {
            Phase::Up | Phase::Down | Phase::Killed => attempt(),
            Phase::Starting => {
                self.kill()?;
                self.agent = Some(self.launch()?);
                attempt()
            }
            Phase::Upgrade => self.upgrade(attempt),
        }
    }

    /// Runs `attempt` while the next agent takes over and the victim requests its own role.
    fn upgrade<T>(&mut self, attempt: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut command = self.fixture.victim.place().command(self.pod_client);
        let url = format!("{METADATA_SERVICE}{OWN}");
        command.args(["steady", "--rate=50", "--seconds=1", &url]);
        let client = Program::start("the victim's client", command)?;
        let next = self.launch()?;
        let outcome = attempt()?;
        let ready = |line: &str| line.ends_with("ready").then_some(());
        next.program().wait_for("that it is ready", LIMIT, ready)?;
        if let Some(before) = self.agent.replace(next) {
            before.stop()?;
        }
        let ended = client.finish(LIMIT)?;
        ensure!(ended.status.success(), "the victim: {}", ended.stderr);
        for tried in steady::read(&ended.stdout)? {
            self.load.requests += 1;
            if !matches!(tried.end, End::Answered(200, _)) {
                self.load.failed += 1;
            }
        }
        Ok(outcome)
    }

    /// Stops the last agent, and returns the results of the victim's requests.
    pub(super) fn end(self) -> Load {
        self.load
    }

    fn launch(&self) -> Result<Agent> {
        let node = &self.fixture.node;
        self.fixture.cluster.launch_agent(node, node.tls(), &[])
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.program().signal(Signal::SIGKILL)?;
        }
        Ok(())
    }
}
