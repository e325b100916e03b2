//! What the tests of kiam's programs begin with: a node with a server and an agent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use testbed::doubles::sigv4::Keys;
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{Agent, Programs, Server};
use testbed::probe::{Answer, METADATA_SERVICE, Outcome, Prober};
use testbed::sandbox::{NodeOptions, Place, Pod};

/// What the namespace of alice permits.
pub(crate) const TEAM_A: &str = "arn:aws:iam::123456789012:role/a-.*";

/// How long what has changed may take to be seen.
const EVENTUALLY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(30);

/// A node with two pods of two teams, and kiam at work.
pub(crate) struct Play {
    pub(crate) alice: Pod,
    pub(crate) bob: Pod,
    pub(crate) agent: Agent,
    pub(crate) server: Server,
    pub(crate) node: FileClusterNode,
    pub(crate) cluster: FileCluster,
}

/// The programs that `cargo xtask test` built.
pub(crate) fn programs() -> Result<Programs> {
    let folder = std::env::var_os(testbed::kiam::PROGRAMS);
    let folder = folder.context("kiam's programs, which `cargo xtask test` builds")?;
    Programs::in_folder(Path::new(&folder))
}

pub(crate) fn prober() -> Result<Prober> {
    Prober::new()
}

/// Two teams, each with a pod on this node and a role that its namespace permits.
pub(crate) fn cast(cluster: &FileCluster, node: &FileClusterNode) -> Result<(Pod, Pod)> {
    cluster.objects().put_namespace("team-a", Some(TEAM_A))?;
    cluster.objects().put_namespace("team-b", Some(".*"))?;
    let alice = cluster.pod(node, ("team-a", "alice"), Some("a-reader"))?;
    let bob = cluster.pod(node, ("team-b", "bob"), Some("b-writer"))?;
    Ok((alice, bob))
}

impl Play {
    pub(crate) fn begin() -> Result<Self> {
        Self::begin_with(&[])
    }

    /// With flags of the agent's.
    pub(crate) fn begin_with(agent_flags: &[&str]) -> Result<Self> {
        let cluster = FileCluster::new(&programs()?)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        let (alice, bob) = cast(&cluster, &node)?;
        let server = cluster.start_server(&[])?;
        let agent = cluster.start_agent(&node, agent_flags)?;
        Ok(Self {
            alice,
            bob,
            agent,
            server,
            node,
            cluster,
        })
    }

    /// Whose credentials a place gets, as STS knows them by their signature.
    pub(crate) fn identity(&self, place: &Place) -> Result<String> {
        let keys = credentials(place)?;
        let arn = self.cluster.sts().identify(&keys);
        arn.map_err(|code| anyhow!("STS says {code} to these credentials"))
    }

    /// That both teams still get what is theirs, nobody reached the node's own service, and
    /// neither program came to harm.
    pub(crate) fn others_are_unaffected(&self) -> Result<()> {
        for program in [self.server.program(), self.agent.program()] {
            let (name, said) = (program.name(), program.output());
            ensure!(!program.has_ended(), "{name} has ended:\n{said}");
            ensure!(!said.contains("panicked"), "{name} has panicked:\n{said}");
        }
        for (pod, role) in [(&self.alice, "a-reader"), (&self.bob, "b-writer")] {
            let identity = self.identity(pod.place())?;
            ensure!(
                identity.contains(&format!(":assumed-role/{role}/")),
                "{identity}"
            );
        }
        let leaked = self.node.imds().traffic().bytes();
        ensure!(
            leaked == 0,
            "{leaked} bytes reached the node's metadata service"
        );
        Ok(())
    }
}

/// Asks as an SDK does with IMDSv1.
pub(crate) fn ask(place: &Place, role: &str) -> Result<Outcome> {
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/{role}");
    prober()?.get(place, &url)
}

/// Asks for the role, and then for its credentials.
pub(crate) fn credentials(place: &Place) -> Result<Keys> {
    let role = answered(ask(place, "")?)?;
    let body = answered(ask(place, role.trim())?)?;
    let json: serde_json::Value = serde_json::from_str(&body)?;
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Ok(Keys {
        access_key: text("AccessKeyId").with_context(|| format!("no key in {json}"))?,
        secret_key: text("SecretAccessKey").context("no secret")?,
        session_token: text("Token"),
    })
}

fn answered(outcome: Outcome) -> Result<String> {
    let Answer { status, body, .. } = outcome.answer()?;
    ensure!(status == 200, "{status}: {body}");
    Ok(body)
}

/// That a place is refused, with this status and all of these in the text.
pub(crate) fn refused(place: &Place, role: &str, status: u16, parts: &[&str]) -> Result<()> {
    let answer = ask(place, role)?.answer()?;
    ensure!(
        answer.status == status,
        "{} and not {status}: {}",
        answer.status,
        answer.body
    );
    for part in parts {
        ensure!(
            answer.body.contains(part),
            "no {part:?} in {:?}",
            answer.body
        );
    }
    ensure!(answer.body.len() < 2048, "{} bytes long", answer.body.len());
    Ok(())
}

/// Tries until it succeeds: what has changed takes its way through the server and the stream.
pub(crate) fn eventually<T>(mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    for _ in 0..EVENTUALLY.as_millis() / PAUSE.as_millis() {
        match check() {
            Ok(found) => return Ok(found),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(PAUSE);
    }
    let last = last.context("never tried")?;
    Err(last.context(format!("not so within {EVENTUALLY:?}")))
}

/// What a program logs from here on holds all of these.
pub(crate) fn logs(program: &testbed::sandbox::Program, mark: usize, parts: &[&str]) -> Result<()> {
    program.wait_for_after(mark, &parts.join(" … "), EVENTUALLY, |line| {
        parts.iter().all(|part| line.contains(part)).then_some(())
    })
}
