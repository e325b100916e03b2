//! `cargo xtask restarts`: a pod requests its credentials all the time while the node's agent is
//! upgraded repeatedly, and then killed repeatedly. Every other agent is of a version that keeps
//! other maps in the kernel.
//!
//! The path is the real one: the pod's namespace and cgroup, the kernel's redirect, kiam-agent and
//! kiam-server as processes. The node's own metadata service counts its connections and bytes.

mod clients;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use toolchain::{Consent, kernel, prepare};

use crate::clients::Surroundings;
use crate::patched::Patch;
pub use clients::ClientCounts;
use clients::Clients;
use pod_client::steady::{self, End, Try};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{self, Agent, Programs, rust_client};
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox;
use testbed::sandbox::{NodeOptions, Pod, Program, patient};

const ROLE: &str = "a-reader";
const PATH: &str = "/latest/meta-data/iam/security-credentials/";
const START_LIMIT: Duration = Duration::from_secs(30);
/// Time for which the node has no agent after each kill.
const DEAD: Duration = Duration::from_millis(300);
/// A new agent must answer by then.
const RECOVERY_TARGET: Duration = Duration::from_secs(1);

/// Flags of `cargo xtask restarts`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Connections per second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,

    /// Duration of the upgrades, and again of the kills
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub seconds: u64,

    /// Number of upgrades, and of kills, of the agent
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,

    /// Use kiam's programs that were built before, in this folder
    #[arg(long, hide = true, value_name = "FOLDER")]
    pub programs: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Also run SDKs that keep tokens and connections and sign requests; installs them
    #[arg(long)]
    pub clients: bool,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub consent: Consent,
}

/// Result of the command.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// While agents were replaced by overlapping ones.
    pub upgrades: Counts,
    /// While agents were killed and started again.
    pub kills: Counts,
    /// The longest time from an agent's start to the first answer after it, in milliseconds.
    pub recovery_max_ms: u64,
    /// Bytes that reached the node's own metadata service.
    pub leaked_bytes: u64,
    /// SDKs that kept tokens and connections: while the agent was upgraded, and then killed.
    pub clients: Vec<ClientCounts>,
}

/// Results of a pod's requests.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Number of replacements of the agent.
    pub times: u32,
    /// Requests.
    pub requests: usize,
    /// Answered with the pod's own role.
    pub answered: usize,
    /// Refused connections.
    pub refused: usize,
    /// Connections that were cut off while the agent was dying.
    pub cut: usize,
    /// Anything else: errors, other statuses, no answer in time.
    pub failed: usize,
    /// Answered with something else than the pod's own role.
    pub wrong: usize,
    /// The longest time to an answer, in milliseconds.
    pub slowest_ms: u64,
    /// The first of the failures.
    pub first_failure: Option<String>,
}

impl Counts {
    /// Counts; `deaths` are the times from the kill of an agent to its end.
    fn of(times: u32, tries: &[Try], deaths: &[RangeInclusive<u64>]) -> Self {
        let dying = |tried: &Try| {
            let end = tried.at + tried.took / 1000;
            deaths
                .iter()
                .any(|death| tried.at <= *death.end() && end >= *death.start())
        };
        let mut counts = Self {
            times,
            requests: tries.len(),
            ..Self::default()
        };
        for tried in tries {
            match &tried.end {
                End::Answered(200, body) if body == ROLE => {
                    counts.answered += 1;
                    counts.slowest_ms = counts.slowest_ms.max(tried.took / 1000);
                }
                End::Answered(200, _) => counts.wrong += 1,
                End::Refused => counts.refused += 1,
                End::Failed(_) if dying(tried) => counts.cut += 1,
                End::Answered(..) | End::Failed(_) => {
                    counts.failed += 1;
                    let first = &mut counts.first_failure;
                    first.get_or_insert_with(|| format!("{:?}", tried.end));
                }
            }
        }
        counts
    }
}

impl Report {
    /// Checks the requests and the time from an agent's start to its first answer.
    ///
    /// # Errors
    /// Fails when a request ended in a way that it must not, or an agent took too long.
    pub fn check(&self) -> Result<()> {
        self.check_requests()?;
        let recovery = self.recovery_max_ms;
        let target = patient(RECOVERY_TARGET);
        ensure!(
            u128::from(recovery) <= target.as_millis(),
            "{recovery} ms from an agent's start to its first answer"
        );
        Ok(())
    }

    /// Checks the requests alone.
    ///
    /// # Errors
    /// Fails when one ended in a way that it must not.
    pub fn check_requests(&self) -> Result<()> {
        let (upgrades, kills) = (&self.upgrades, &self.kills);
        ensure!(
            self.leaked_bytes == 0,
            "{} bytes reached the node's metadata service",
            self.leaked_bytes
        );
        ensure!(
            upgrades.answered == upgrades.requests,
            "requests failed while the agent was upgraded: {upgrades:?}"
        );
        ensure!(
            kills.failed == 0 && kills.wrong == 0,
            "requests ended otherwise than refused while the agent was killed: {kills:?}"
        );
        ensure!(
            kills.refused > 0,
            "no connection was refused while there was no agent: {kills:?}"
        );
        self.clients.iter().try_for_each(ClientCounts::check)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>6}{:>10}{:>10}{:>9}{:>6}{:>8}{:>7}{:>12}",
            "", "times", "requests", "answered", "refused", "cut", "failed", "wrong", "slowest"
        )?;
        for (name, counts) in [
            ("overlapping upgrade", &self.upgrades),
            ("kill -9 and start", &self.kills),
        ] {
            writeln!(
                f,
                "{name:<24}{:>6}{:>10}{:>10}{:>9}{:>6}{:>8}{:>7}{:>9} ms",
                counts.times,
                counts.requests,
                counts.answered,
                counts.refused,
                counts.cut,
                counts.failed,
                counts.wrong,
                counts.slowest_ms
            )?;
        }
        for counts in &self.clients {
            writeln!(
                f,
                "{:<24}{} requests, {} failed while there was no agent, {} failed else; {} ms at \
                 most without one that was signed",
                counts.client,
                counts.requests,
                counts.failed_meanwhile,
                counts.failed,
                counts.longest_ms
            )?;
        }
        writeln!(
            f,
            "from an agent's start to its first answer: {} ms at most",
            self.recovery_max_ms
        )?;
        write!(
            f,
            "bytes at the node's own metadata service: {}",
            self.leaked_bytes
        )
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when something happened that must not, or the sandbox fails.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    if args.clients {
        prepare(args.consent, |plan| {
            sandbox::plan(plan);
            kernel::plan(plan);
            crate::clients::plan(plan)
        })?;
    }
    let build = || Patch::NextLayout.build_beside();
    let programs = Programs::found_or(args.programs.as_deref(), build)?;
    let report = run_suite(args, &programs)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    report.check()
}

/// Upgrades and kills the agent of a node, and reports the answers that its pod got.
///
/// # Errors
/// Fails when the agent of the next version was not built, or the sandbox fails.
pub fn run_suite(args: &Args, programs: &Programs) -> Result<Report> {
    let next = programs.patched(Patch::NextLayout.name())?;
    let mut versions = [&next, programs].into_iter().cycle();
    let cluster = FileCluster::new(programs)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    cluster.objects().put_namespace("team-a", Some(".*"))?;
    let pod = cluster.pod(&node, ("team-a", "alice"), Some(ROLE))?;
    let server = cluster.start_server(&[])?;
    let mut agent = cluster.start_agent(&node, &[])?;
    // Every pause is the same, and the last agent has one too.
    let pause = Duration::from_secs(args.seconds) / (args.times + 1);

    let around = if args.clients {
        Some(Surroundings {
            rust: rust_client()?,
            sts: cluster.sts().url(),
            s3: String::new(),
        })
    } else {
        None
    };
    let sdks = || {
        around
            .as_ref()
            .map(|around| Clients::start(&pod, around))
            .transpose()
    };

    let at_work = sdks()?;
    let client = client(args, &pod)?;
    let times = args.times as usize;
    for version in versions.by_ref().take(times) {
        std::thread::sleep(pause);
        let before = maps(&node)?;
        let next = begin(&cluster, &node, version)?;
        ensure!(maps(&node)? != before, "both versions keep the same maps");
        agent.stop()?;
        agent = next;
    }
    let upgrades = Counts::of(args.times, &end(client, args)?, &[]);
    let mut clients = at_work.map_or_else(Vec::new, |at_work| at_work.end(&[]));

    let at_work = sdks()?;
    let client = self::client(args, &pod)?;
    let (mut starts, mut deaths, mut restarts) = (Vec::new(), Vec::new(), Vec::new());
    for version in versions.take(times) {
        std::thread::sleep(pause.saturating_sub(DEAD));
        let killed = now();
        agent.program().signal(Signal::SIGKILL)?;
        drop(agent);
        deaths.push(killed..=now());
        std::thread::sleep(DEAD);
        starts.push(now());
        agent = begin(&cluster, &node, version)?;
        restarts.push(killed..=now());
    }
    let tries = end(client, args)?;
    clients.extend(at_work.map_or_else(Vec::new, |at_work| at_work.end(&restarts)));
    let recovery = starts.iter().map(|start| recovery(&tries, *start));
    let recovery_max_ms = recovery
        .collect::<Option<Vec<_>>>()
        .and_then(|times| times.into_iter().max())
        .context("no request was answered after an agent's start")?;
    drop((agent, server));
    Ok(Report {
        upgrades,
        kills: Counts::of(args.times, &tries, &deaths),
        recovery_max_ms,
        leaked_bytes: node.imds().traffic().bytes(),
        clients,
    })
}

/// Starts an agent and waits for its log to report that it is ready: its admin port might be
/// answered by the agent before it.
fn begin(cluster: &FileCluster, node: &FileClusterNode, programs: &Programs) -> Result<Agent> {
    let agent = cluster.launch_agent_of(programs, node, node.tls(), &[])?;
    let ready = |line: &str| line.ends_with("ready").then_some(());
    agent
        .program()
        .wait_for("that it is ready", START_LIMIT, ready)?;
    Ok(agent)
}

/// The names of the maps that outlive the agent, with their versions.
fn maps(node: &FileClusterNode) -> Result<BTreeSet<OsString>> {
    let folder = node.node().bpffs().path().join("kiam/maps");
    let entries = std::fs::read_dir(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name()));
    names.collect()
}

fn client(args: &Args, pod: &Pod) -> Result<Program> {
    let mut command = pod.place().command(kiam::pod_client()?);
    command.arg("steady").args([
        format!("--rate={}", args.rate),
        format!("--seconds={}", args.seconds),
        format!("{METADATA_SERVICE}{PATH}"),
    ]);
    Program::start("the pod's client", command)
}

fn end(client: Program, args: &Args) -> Result<Vec<Try>> {
    let limit = Duration::from_secs(args.seconds) + START_LIMIT;
    let ended = client.finish(limit)?;
    ensure!(
        ended.status.success(),
        "the client failed: {}",
        ended.stderr
    );
    steady::read(&ended.stdout)
}

/// Time from `start` to the end of the first request that was answered after it.
fn recovery(tries: &[Try], start: u64) -> Option<u64> {
    let answered = |tried: &&Try| matches!(tried.end, End::Answered(200, _)) && tried.at >= start;
    let first = tries.iter().find(answered)?;
    Some(first.at + first.took / 1000 - start)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
