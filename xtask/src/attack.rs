//! `cargo xtask attack`: what a hostile pod tries to reach the node's metadata service, or another
//! pod's credentials, in every state that the agent can be in.
//!
//! Each attempt runs as a process of a pod, in its cgroup and namespaces. Whether it has succeeded is
//! counted at the service: packets that are delivered to its addresses. The same attempts are made
//! first where nothing guards the node, so that one which never works cannot pass.

mod list;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::kiam::{Agent, METADATA_PORT, Programs};
use crate::probe::{METADATA_SERVICE, Prober};
use crate::sandbox::{NodeOptions, Place, Pod, Program, run as run_program};
use crate::stage::{Stage, StageNode};
use list::{REACH, Reach};

const ATTACKS: &str = include_str!("attack/attacks.py");
const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_secs(20);
/// For a packet to be counted that is on its way.
const SETTLE: Duration = Duration::from_millis(30);
/// The last of the thefts: there is no victim any more.
const ADDRESS_REUSED: &str = "the victim's address, as it is given up";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// Flags of `cargo xtask attack`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only in this state of the agent; in all if not given
    #[arg(long, value_enum)]
    pub phase: Vec<Phase>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A state of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It runs.
    Up,
    /// It was stopped in order.
    Down,
    /// It was killed.
    Killed,
    /// One starts anew before each attempt.
    Starting,
    /// One takes over from another during each attempt.
    Upgrade,
}

impl Phase {
    const ALL: [Self; 5] = [
        Self::Up,
        Self::Down,
        Self::Killed,
        Self::Starting,
        Self::Upgrade,
    ];
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Attempts to reach the metadata service.
    pub reach: Vec<Reached>,
    /// A connection from before the first agent, when that is there.
    pub old_connection: OldConnection,
    /// Attempts to get another pod's credentials, with the agent at work.
    pub theft: Vec<Theft>,
}

/// A connection to the metadata service that is older than any guard.
#[derive(Debug, Clone, Serialize)]
pub struct OldConnection {
    /// Packets that came to the service while nothing guarded it.
    pub before: usize,
    /// Packets of it that came once an agent was there.
    pub after: usize,
}

/// An attempt to reach the metadata service.
#[derive(Debug, Clone, Serialize)]
pub struct Reached {
    /// What was tried.
    pub attack: &'static str,
    /// Packets that came to the service where nothing guards it.
    pub unguarded: usize,
    /// Whether there have to be some.
    pub works: bool,
    /// Packets that came to it, by the state of the agent.
    pub packets: Vec<(Phase, usize)>,
}

/// An attempt to get another pod's credentials.
#[derive(Debug, Clone, Serialize)]
pub struct Theft {
    /// What was tried.
    pub attack: String,
    /// Whether something of the other's was heard.
    pub stolen: bool,
    /// The beginning of what was heard.
    pub heard: String,
}

impl Report {
    /// That every attempt is one, and none has succeeded.
    ///
    /// # Errors
    /// When not so.
    pub fn check(&self) -> Result<()> {
        for reached in &self.reach {
            ensure!(
                reached.unguarded > 0 || !reached.works,
                "{} reaches nothing where nothing guards: it is no attack",
                reached.attack
            );
            for (phase, packets) in &reached.packets {
                ensure!(
                    *packets == 0,
                    "{} reached the metadata service, with the agent {phase:?}",
                    reached.attack
                );
            }
        }
        let OldConnection { before, after } = self.old_connection;
        ensure!(before > 0, "there was no connection before the agent");
        ensure!(after == 0, "a connection from before the agent lives on");
        for theft in &self.theft {
            ensure!(!theft.stolen, "{}: {}", theft.attack, theft.heard);
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<32}{:>11}", "packets at the service", "unguarded")?;
        let phases = self.reach.first().map_or(&[][..], |first| &first.packets);
        for (phase, _) in phases {
            write!(f, "{:>10}", format!("{phase:?}").to_lowercase())?;
        }
        writeln!(f)?;
        for reached in &self.reach {
            write!(f, "{:<32}{:>11}", reached.attack, reached.unguarded)?;
            for (_, packets) in &reached.packets {
                write!(f, "{packets:>10}")?;
            }
            writeln!(f)?;
        }
        let OldConnection { before, after } = self.old_connection;
        writeln!(
            f,
            "{:<32}{before:>11}{after:>10}",
            "a connection from before"
        )?;
        writeln!(f)?;
        for theft in &self.theft {
            let outcome = if theft.stolen { "STOLEN" } else { "nothing" };
            writeln!(f, "{:<43}{outcome:<10}{}", theft.attack, theft.heard)?;
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// When an attempt has succeeded, or the sandbox fails.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    let programs = Programs::build()?;
    let xtask = format!("/proc/{}/exe", std::process::id());
    let phases = match &*args.phase {
        [] => &Phase::ALL[..],
        some => some,
    };
    let report = play(&programs, xtask.as_ref(), phases)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    report.check()
}

/// Makes all attempts.
///
/// # Errors
/// When the sandbox fails. That an attempt succeeds is in the report.
pub fn play(programs: &Programs, xtask: &Path, phases: &[Phase]) -> Result<Report> {
    let scene = Scene::new(programs)?;
    let mut reach: Vec<_> = REACH
        .iter()
        .map(|attack| {
            Ok(Reached {
                attack: attack.name,
                unguarded: scene.attempt(attack)?,
                works: attack.works,
                packets: Vec::new(),
            })
        })
        .collect::<Result<_>>()?;
    let mut theft = Vec::new();
    let server = scene.stage.start_server(&[])?;
    let old_connection = scene.old_connection()?;
    for phase in phases {
        let mut agent = Some(scene.agent()?);
        match phase {
            Phase::Up => theft = scene.thefts(&Prober::new(xtask.to_owned()))?,
            Phase::Down => {
                let running = agent.take().context("it has just been started")?;
                running.stop()?;
            }
            Phase::Killed => scene.kill(&mut agent)?,
            Phase::Starting | Phase::Upgrade => {}
        }
        for (attack, reached) in REACH.iter().zip(&mut reach) {
            let packets = match phase {
                Phase::Up | Phase::Down | Phase::Killed => scene.attempt(attack)?,
                Phase::Starting => {
                    scene.kill(&mut agent)?;
                    agent = Some(
                        scene
                            .stage
                            .launch_agent(&scene.node, scene.node.tls(), &[])?,
                    );
                    scene.attempt(attack)?
                }
                Phase::Upgrade => {
                    let next = scene
                        .stage
                        .launch_agent(&scene.node, scene.node.tls(), &[])?;
                    let packets = scene.attempt(attack)?;
                    agent = Some(next);
                    packets
                }
            };
            reached.packets.push((*phase, packets));
        }
    }
    drop(server);
    Ok(Report {
        reach,
        old_connection,
        theft,
    })
}

/// A node with its metadata service, a hostile pod and its victim.
struct Scene {
    attacker: Pod,
    victim: Pod,
    counter: Program,
    node: StageNode,
    stage: Stage,
}

impl Scene {
    fn new(programs: &Programs) -> Result<Self> {
        let stage = Stage::new(programs)?;
        let node = stage.node("node-1", NodeOptions::default())?;
        stage.objects().put_namespace("team-a", Some(".*"))?;
        let attacker = stage.pod(&node, ("team-a", "attacker"), Some("a-reader"))?;
        let victim = stage.pod(&node, ("team-a", "victim"), Some("b-writer"))?;
        let counter = python(node.node().place(), &["count"]);
        let counter = Program::start("the counter at the service", counter)?;
        counter.wait_for("that it counts", LIMIT, |line| {
            (line == "counting").then_some(())
        })?;
        Ok(Self {
            attacker,
            victim,
            counter,
            node,
            stage,
        })
    }

    fn agent(&self) -> Result<Agent> {
        self.stage.start_agent(&self.node, &[])
    }

    fn kill(&self, agent: &mut Option<Agent>) -> Result<()> {
        if let Some(agent) = agent.take() {
            agent.program().signal(Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// How many packets come to the service by it.
    fn attempt(&self, attack: &Reach) -> Result<usize> {
        let before = self.packets();
        self.run(&self.attacker, attack.words)?;
        std::thread::sleep(SETTLE);
        Ok(self.packets() - before)
    }

    /// One that was made while nothing guarded the service, asked on when an agent is there.
    fn old_connection(&self) -> Result<OldConnection> {
        let start = self.packets();
        let holder = python(self.attacker.place(), &["hold", "v4"]);
        let holder = Program::start("an old connection", holder)?;
        let line = |begin: &'static str| move |line: &str| line.starts_with(begin).then_some(());
        holder.wait_for("that it is there", LIMIT, line("connected"))?;
        std::thread::sleep(SETTLE);
        let before = self.packets() - start;
        let agent = self.agent()?;
        holder.signal(Signal::SIGUSR1)?;
        holder.wait_for("what came of it", LIMIT, line("heard"))?;
        std::thread::sleep(SETTLE);
        let after = self.packets() - start - before;
        drop(holder);
        drop(agent);
        Ok(OldConnection { before, after })
    }

    fn packets(&self) -> usize {
        let output = self.counter.output();
        output
            .lines()
            .filter(|line| line.starts_with("packet"))
            .count()
    }

    fn run(&self, pod: &Pod, words: &[&str]) -> Result<String> {
        let ended = run_program("an attack", python(pod.place(), words), LIMIT)?;
        Ok(ended.stdout)
    }

    /// Attempts to get what is the victim's.
    fn thefts(&self, prober: &Prober) -> Result<Vec<Theft>> {
        let role = format!("{ROLES}b-writer");
        let url = format!("{METADATA_SERVICE}{role}");
        let body = prober.get(self.victim.place(), &url)?.answer()?.body;
        let json: serde_json::Value = serde_json::from_str(&body)?;
        let secret = json["SecretAccessKey"].as_str().context("no secret")?;

        let token = prober.send(
            self.victim.place(),
            "PUT",
            &format!("{METADATA_SERVICE}/latest/api/token"),
            &[("X-aws-ec2-metadata-token-ttl-seconds", "60")],
        )?;
        let token = format!("X-aws-ec2-metadata-token: {}", token.answer()?.body);
        let victim = self.victim.ip().context("it has an address")?.to_string();
        let agent = self.node.node().ip().to_string();
        let port = METADATA_PORT.to_string();
        let query = format!("{role}?ip={victim}");
        let forwarded = format!("X-Forwarded-For: {victim}");
        let real = format!("X-Real-IP: {victim}");
        let elsewhere = self.stage.node("node-2", NodeOptions::default())?;
        let other_agent = self.stage.start_agent(&elsewhere, &[])?;
        let other = elsewhere.node().ip().to_string();
        let via = "169.254.169.254";
        let door = self.stage.sandbox().scratch().join("door");
        let door = door.to_string_lossy().into_owned();
        let lender = Program::start("the victim", python(self.victim.place(), &["lend", &door]))?;
        lender.wait_for("that it lends", LIMIT, |line| {
            (line == "lending").then_some(())
        })?;
        let disguise = format!(
            "kubepods-burstable-pod{}.slice/cri-containerd-{:064}.scope",
            self.victim.uid().replace('-', "_"),
            0
        );
        let attempts: &[(&str, &[&str])] = &[
            ("the victim's role by name", &["http", via, "80", &role]),
            ("?ip= of the victim", &["http", via, "80", &query]),
            (
                "X-Forwarded-For, X-Real-IP",
                &["http", via, "80", &role, &forwarded, &real],
            ),
            (
                "Host of the victim",
                &["http", via, "80", &role, &format!("Host: {victim}")],
            ),
            (
                "the victim's IMDSv2 token",
                &["http", via, "80", &role, &token],
            ),
            ("the agent's port directly", &["http", &agent, &port, &role]),
            ("another node's agent", &["http", &other, &port, ROLES]),
            ("request smuggling", &["smuggle", &role]),
            (
                "a cgroup named as the victim's",
                &["disguised", &disguise, &role],
            ),
            (
                "a socket that the victim connects",
                &["borrow", &door, &role],
            ),
            (
                "the victim's address as its own",
                &["spoof", &victim, &role],
            ),
            (ADDRESS_REUSED, &["spoof", &victim, &role]),
        ];
        let thefts = attempts.iter().map(|(attack, words)| {
            if *attack == ADDRESS_REUSED {
                self.stage.objects().remove_pod(("team-a", "victim"))?;
            }
            let heard = self.run(&self.attacker, words)?;
            let granted = *attack == "another node's agent" && heard.contains("200 OK");
            Ok(Theft {
                attack: (*attack).to_owned(),
                stolen: heard.contains(secret) || granted,
                heard: first_line(&heard),
            })
        });
        let thefts = thefts.collect();
        drop((other_agent, lender));
        thefts
    }
}

fn first_line(heard: &str) -> String {
    let line = heard.lines().find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(60).collect()
}

fn python(place: &Place, words: &[&str]) -> std::process::Command {
    let mut command = place.command(PYTHON);
    command.args(["-I", "-S", "-u", "-c", ATTACKS]).args(words);
    command
}
