//! The start of a sandbox test: a node with the pods of two teams, served by kiam.
//!
//! Assertions panic at the line of the test. A condition that takes a while to become true is a
//! check that returns an error, for [`eventually`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, ensure};

use crate::doubles::sigv4::Keys;
use crate::file_cluster::{FileCluster, FileClusterNode, PodName};
use crate::kiam::{Agent, PROGRAMS, Programs, Server};
use crate::probe::{Answer, METADATA_SERVICE, Outcome, Prober};
use crate::sandbox::{NodeOptions, Place, Pod, Program};
use crate::sdk;

/// Expression that the namespace of alice permits.
pub const TEAM_A: &str = "arn:aws:iam::123456789012:role/a-.*";

/// Limit for a change to pass through the server and the stream.
const EVENTUALLY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(30);

/// A node with two pods of two teams, a server and an agent.
#[derive(Debug)]
pub struct Fixture {
    // In the order in which they are dropped: pods before their node, programs before the rest.
    /// The pod of team-a, with the role `a-reader`.
    pub alice: Pod,
    /// The pod of team-b, with the role `b-writer`.
    pub bob: Pod,
    /// The node's agent.
    pub agent: Agent,
    /// The server.
    pub server: Server,
    /// The node.
    pub node: FileClusterNode,
    /// STS and the cluster's objects.
    pub cluster: FileCluster,
}

impl Fixture {
    /// Starts all of it, and waits until the agent serves its pods.
    ///
    /// # Panics
    /// When something does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with more flags of the agent.
    ///
    /// # Panics
    /// When something does not start.
    #[track_caller]
    pub fn start_with(agent_flags: &[&str]) -> Self {
        let started = || {
            let cluster = FileCluster::new(&find_programs()?)?;
            let node = cluster.node("node-1", NodeOptions::default())?;
            let (alice, bob) = make_teams(&cluster, &node)?;
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
        };
        or_panic("cannot start the fixture", started())
    }

    /// Adds a pod to the node; `role` is its annotation.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn pod(&self, name: PodName<'_>, role: Option<&str>) -> Pod {
        let pod = self.cluster.pod(&self.node, name, role);
        or_panic(&format!("cannot make the pod {name:?}"), pod)
    }

    /// ARN of the role session whose credentials a place gets, as STS knows them by their
    /// signature.
    ///
    /// # Errors
    /// When there are no credentials, or none that STS knows.
    pub fn role_session(&self, place: &Place) -> Result<String> {
        let keys = try_credentials(place)?;
        let arn = self.cluster.sts().identify(&keys);
        arn.map_err(|code| anyhow!("STS answers {code} to these credentials"))
    }

    /// Checks that both teams get the credentials of their role, that no request reached the node's
    /// metadata service, and that both programs run.
    ///
    /// # Errors
    /// When one of these is not so.
    pub fn check_teams(&self) -> Result<()> {
        for program in [self.server.program(), self.agent.program()] {
            let (name, output) = (program.name(), program.output());
            ensure!(!program.has_ended(), "{name} has ended:\n{output}");
            ensure!(
                !output.contains("panicked"),
                "{name} has panicked:\n{output}"
            );
        }
        for (pod, role) in [(&self.alice, "a-reader"), (&self.bob, "b-writer")] {
            let session = self.role_session(pod.place())?;
            ensure!(
                session.contains(&format!(":assumed-role/{role}/")),
                "the pod with the role {role} has the credentials of {session}"
            );
        }
        let leaked = self.node.imds().traffic().bytes();
        ensure!(
            leaked == 0,
            "{leaked} bytes reached the node's metadata service"
        );
        Ok(())
    }

    /// Asserts what [`Self::check_teams`] checks.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn assert_teams_are_served(&self) {
        or_panic("the teams are not served as before", self.check_teams());
    }

    /// The agent's metrics, as its admin port exposes them.
    ///
    /// # Panics
    /// When the admin port does not answer.
    #[track_caller]
    pub fn agent_metrics(&self) -> String {
        or_panic("no metrics of the agent", self.agent.admin("/metrics")).body
    }
}

/// The programs that `cargo xtask test` built.
///
/// # Panics
/// When it did not: the tests were started in another way.
#[track_caller]
pub fn programs() -> Programs {
    or_panic("no programs to test", find_programs())
}

fn find_programs() -> Result<Programs> {
    let folder = std::env::var_os(PROGRAMS);
    let folder =
        folder.context("needs kiam's programs: run `cargo xtask test`, which builds them")?;
    Programs::in_folder(Path::new(&folder))
}

/// Requires AWS's SDKs.
///
/// # Panics
/// When they are not installed.
#[track_caller]
pub fn require_sdks() {
    assert!(
        sdk::are_installed(),
        "needs AWS's SDKs: run `cargo xtask test`, which installs them"
    );
}

/// Adds the teams of [`Fixture`] to another cluster: their namespaces, and a pod of each on a node.
///
/// # Panics
/// When they cannot be made.
#[track_caller]
pub fn teams(cluster: &FileCluster, node: &FileClusterNode) -> (Pod, Pod) {
    or_panic("no pods", make_teams(cluster, node))
}

fn make_teams(cluster: &FileCluster, node: &FileClusterNode) -> Result<(Pod, Pod)> {
    cluster.objects().put_namespace("team-a", Some(TEAM_A))?;
    cluster.objects().put_namespace("team-b", Some(".*"))?;
    let alice = cluster.pod(node, ("team-a", "alice"), Some("a-reader"))?;
    let bob = cluster.pod(node, ("team-b", "bob"), Some("b-writer"))?;
    Ok((alice, bob))
}

/// Sends a `GET` request from a place.
///
/// # Panics
/// When the process that sends it fails, not when there is no answer.
#[track_caller]
pub fn try_get(place: &Place, url: &str) -> Outcome {
    let outcome = Prober::new().and_then(|prober| prober.get(place, url));
    or_panic(&format!("cannot ask for {url}"), outcome)
}

/// Asks the metadata service for the credentials of a role, or with `""` for the name of the role,
/// as an SDK does with IMDSv1.
///
/// # Panics
/// When the process that asks fails, not when there is no answer.
#[track_caller]
pub fn try_ask(place: &Place, role: &str) -> Outcome {
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/{role}");
    try_get(place, &url)
}

/// Answer to [`try_ask`].
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn ask(place: &Place, role: &str) -> Answer {
    or_panic(
        "the metadata service does not answer",
        try_ask(place, role).answer(),
    )
}

/// Answer to [`try_get`].
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn get(place: &Place, url: &str) -> Answer {
    or_panic(&format!("no answer of {url}"), try_get(place, url).answer())
}

/// Asks for the role, and then for its credentials.
///
/// # Panics
/// When there are none.
#[track_caller]
pub fn credentials(place: &Place) -> Keys {
    or_panic("no credentials", try_credentials(place))
}

fn try_credentials(place: &Place) -> Result<Keys> {
    let role = body(try_ask(place, ""))?;
    let body = body(try_ask(place, role.trim()))?;
    let json: serde_json::Value = serde_json::from_str(&body)?;
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Ok(Keys {
        access_key: text("AccessKeyId").with_context(|| format!("no key in {json}"))?,
        secret_key: text("SecretAccessKey").context("no secret")?,
        session_token: text("Token"),
    })
}

fn body(outcome: Outcome) -> Result<String> {
    let Answer { status, body, .. } = outcome.answer()?;
    ensure!(status == 200, "{status}: {body}");
    Ok(body)
}

/// Checks that a place is denied credentials, with this status and a body that contains all of
/// these parts.
///
/// # Errors
/// When it gets another answer.
pub fn check_denied(place: &Place, role: &str, status: u16, parts: &[&str]) -> Result<()> {
    let answer = try_ask(place, role).answer()?;
    ensure!(
        answer.status == status,
        "status {} instead of {status}: {}",
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

/// Asserts what [`check_denied`] checks.
///
/// # Panics
/// When it is not so.
#[track_caller]
pub fn assert_denied(place: &Place, role: &str, status: u16, parts: &[&str]) {
    or_panic(
        &format!("{role:?} is not denied as expected"),
        check_denied(place, role, status, parts),
    );
}

/// Asserts what [`check_denied`] checks, as soon as it becomes true.
///
/// # Panics
/// When it does not become true.
#[track_caller]
pub fn assert_denied_eventually(place: &Place, role: &str, status: u16, parts: &[&str]) {
    eventually(|| check_denied(place, role, status, parts));
}

/// Repeats a check until it succeeds.
///
/// # Panics
/// With the last error, when it does not succeed in time.
#[track_caller]
pub fn eventually<T>(mut check: impl FnMut() -> Result<T>) -> T {
    let mut last = None;
    for _ in 0..EVENTUALLY.as_millis() / PAUSE.as_millis() {
        match check() {
            Ok(found) => return found,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(PAUSE);
    }
    let error = last.unwrap_or_else(|| anyhow!("never checked"));
    panic!("not within {EVENTUALLY:?}: {error:#}")
}

/// Asserts that a program logs a line with all of these parts, now or soon, after the lines that
/// were there at `mark`.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn assert_logs(program: &Program, mark: usize, parts: &[&str]) {
    let found = program.wait_for_after(mark, &parts.join(" … "), EVENTUALLY, |line| {
        parts.iter().all(|part| line.contains(part)).then_some(())
    });
    or_panic("a line of the log is missing", found);
}

/// Value of a result, or the end of the test, with the causes of the error in one line.
#[track_caller]
fn or_panic<T>(what: &str, result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error:#}"),
    }
}
