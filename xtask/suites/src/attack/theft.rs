//! Attempts to get another pod's credentials, and the reply that the pod itself gets to the same
//! request: an attempt that cannot work for any pod proves nothing.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::fixture::{Fixture, LIMIT, python};
use testbed::file_cluster::FileClusterNode;
use testbed::kiam::{Agent, METADATA_PORT};
use testbed::probe::{METADATA_SERVICE, Prober};
use testbed::sandbox::{NodeOptions, Pod, Program, run};

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const VIA: &str = "169.254.169.254";
/// The last of the attempts: there is no victim any more.
const ADDRESS_REUSED: &str = "the victim's address, as it is given up";

/// Reply that the victim itself gets to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnReply {
    /// Its credentials.
    Credentials,
    /// An answer without credentials: the request as such gets none for any caller.
    Answer,
    /// A refusal: no caller may get another reply.
    Refusal,
}

/// An attempt of the attacker's.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) own: OwnReply,
    /// Arguments of attacks.py.
    words: Vec<String>,
    /// True if the victim passes a socket to the attacker, by a Unix socket whose path is the
    /// second argument.
    borrows: bool,
}

/// The attempts, and the other node that one of them goes to.
pub(super) struct Thefts {
    pub(super) attempts: Vec<Attempt>,
    reuse: Attempt,
    _other_agent: Agent,
    _other_node: FileClusterNode,
}

impl Thefts {
    /// Prepares them, with an agent at work that serves the victim.
    pub(super) fn prepare(fixture: &Fixture, prober: &Prober) -> Result<Self> {
        let token = prober.send(
            fixture.victim.place(),
            "PUT",
            &format!("{METADATA_SERVICE}/latest/api/token"),
            &[("X-aws-ec2-metadata-token-ttl-seconds", "21600")],
        )?;
        let token = format!("X-aws-ec2-metadata-token: {}", token.answer()?.body);
        let other_node = fixture.cluster.node("node-2", NodeOptions::default())?;
        let other_agent = fixture.cluster.start_agent(&other_node, &[])?;
        let victim = fixture
            .victim
            .ip()
            .context("it has an address")?
            .to_string();
        let agent = fixture.node.node().ip().to_string();
        let other = other_node.node().ip().to_string();
        let port = METADATA_PORT.to_string();
        let role = format!("{ROLES}b-writer");
        let query = format!("{role}?ip={victim}");
        let forwarded = format!("X-Forwarded-For: {victim}");
        let real = format!("X-Real-IP: {victim}");
        let disguise = format!(
            "kubepods-burstable-pod{}.slice/cri-containerd-{:064}.scope",
            fixture.victim.uid().replace('-', "_"),
            0
        );
        let credentials = |name, words| Attempt::new(name, OwnReply::Credentials, words);
        let attempts = vec![
            credentials("the victim's role by name", vec!["http", VIA, "80", &role]),
            credentials("?ip= of the victim", vec!["http", VIA, "80", &query]),
            credentials(
                "X-Forwarded-For, X-Real-IP",
                vec!["http", VIA, "80", &role, &forwarded, &real],
            ),
            credentials("Host of the victim", vec!["host", &victim, &role]),
            credentials(
                "the victim's IMDSv2 token",
                vec!["http", VIA, "80", &role, &token],
            ),
            credentials(
                "the agent's port directly",
                vec!["http", &agent, &port, &role],
            ),
            Attempt::new(
                "another node's agent",
                OwnReply::Refusal,
                vec!["http", &other, &port, ROLES],
            ),
            Attempt::new(
                "request smuggling",
                OwnReply::Answer,
                vec!["smuggle", &role],
            ),
            credentials(
                "a cgroup named as the victim's",
                vec!["disguised", &disguise, &role],
            ),
            Attempt {
                borrows: true,
                ..credentials(
                    "a socket that the victim connects",
                    vec!["borrow", "", &role],
                )
            },
            credentials(
                "the victim's address as its own",
                vec!["spoof", &victim, &role],
            ),
        ];
        Ok(Self {
            attempts,
            reuse: credentials(ADDRESS_REUSED, vec!["spoof", &victim, &role]),
            _other_agent: other_agent,
            _other_node: other_node,
        })
    }

    /// The victim goes, and the attacker takes its address in the same moment.
    pub(super) fn reuse(&self, fixture: &Fixture) -> Result<(&Attempt, String)> {
        fixture.cluster.objects().remove_pod(("team-a", "victim"))?;
        let heard = self.reuse.make(fixture, &fixture.attacker)?;
        Ok((&self.reuse, heard))
    }
}

impl Attempt {
    fn new(name: &'static str, own: OwnReply, words: Vec<&str>) -> Self {
        Self {
            name,
            own,
            words: words.into_iter().map(str::to_owned).collect(),
            borrows: false,
        }
    }

    /// Makes the attempt from inside a pod, and returns the reply.
    pub(super) fn make(&self, fixture: &Fixture, pod: &Pod) -> Result<String> {
        if !self.borrows {
            return self.run(pod, &self.words);
        }
        // A door for each time: a lender lends once.
        let door = fixture.cluster.sandbox().scratch().join("door");
        drop(std::fs::remove_file(&door));
        let door = door.to_string_lossy().into_owned();
        let lend: Command = python(fixture.victim.place(), &["lend", &door]);
        let lender = Program::start("the victim", lend)?;
        lender.wait_for("the victim's socket", LIMIT, |line| {
            (line == "lending").then_some(())
        })?;
        let mut words = self.words.clone();
        words[1] = door;
        self.run(pod, &words)
    }

    fn run(&self, pod: &Pod, words: &[String]) -> Result<String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(run(self.name, python(pod.place(), &words), LIMIT)?.stdout)
    }

    /// Returns whether a reply is one that only the victim may get.
    pub(super) fn is_theft(&self, heard: &str) -> bool {
        has_credentials(heard) || self.own == OwnReply::Refusal && heard.starts_with("HTTP/1.1 200")
    }

    /// Returns whether the victim gets the reply that makes this an attempt.
    pub(super) fn is_answered(&self, heard: &str) -> bool {
        match self.own {
            OwnReply::Credentials => has_credentials(heard),
            OwnReply::Answer => heard.starts_with("HTTP/1.1 "),
            OwnReply::Refusal => heard.starts_with("HTTP/1.1 503"),
        }
    }
}

fn has_credentials(heard: &str) -> bool {
    heard.contains("\"SecretAccessKey\"")
}
