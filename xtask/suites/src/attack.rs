//! `cargo xtask attack`: attempts of a hostile pod to reach the node's metadata service, or
//! another pod's credentials, in every state of the agent.
//!
//! Each attempt runs as a process of a pod, in its cgroup and namespaces. The service
//! counts the packets that reach its addresses: those are successes. The same attempts are made
//! first where nothing guards the node, so that an attempt which never works cannot pass.

mod fixture;
mod list;
mod phases;
mod report;
mod theft;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use self::fixture::Fixture;
use self::list::REACH;
use self::phases::Change;
use self::report::Reached;
pub use self::report::{Report, Theft};
use self::theft::Thefts;
use testbed::kiam::{self, Programs};
use testbed::probe::Prober;

/// Flags of `cargo xtask attack`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// States of the agent during which to attack (default: all)
    #[arg(long, value_enum)]
    pub phase: Vec<Phase>,

    /// Use kiam's programs that were built before, in this folder
    #[arg(long, hide = true, value_name = "FOLDER")]
    pub programs: Option<PathBuf>,

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
    /// An agent that starts before each attempt.
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

    /// Returns whether there is an agent that could hand credentials to the wrong pod.
    const fn has_agent(self) -> bool {
        matches!(self, Self::Up | Self::Starting | Self::Upgrade)
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when an attempt has succeeded, or the sandbox fails.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    let programs = Programs::found_or(args.programs.as_deref(), Programs::build)?;
    let phases = match &*args.phase {
        [] => &Phase::ALL[..],
        some => some,
    };
    let report = run_suite(&programs, phases)?;
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
/// Fails when the sandbox fails. That an attempt succeeds is in the report.
pub fn run_suite(programs: &Programs, phases: &[Phase]) -> Result<Report> {
    let fixture = Fixture::new(programs)?;
    let mut reach: Vec<_> = REACH
        .iter()
        .map(|attack| {
            Ok(Reached {
                attack: attack.name,
                unguarded: fixture.attempt(attack)?,
                works: attack.works,
                packets: Vec::new(),
            })
        })
        .collect::<Result<_>>()?;
    let server = fixture.cluster.start_server(&[])?;
    let old_connection = fixture.old_connection()?;
    let mut change = Change::new(&fixture, kiam::pod_client()?);
    for phase in phases {
        change.begin(*phase)?;
        for (attack, reached) in REACH.iter().zip(&mut reach) {
            let packets = change.during(*phase, || fixture.attempt(attack))?;
            reached.packets.push((*phase, packets));
        }
    }
    let theft = thefts(&fixture, &mut change, &Prober::new()?, phases)?;
    let load = change.end();
    drop(server);
    Ok(Report {
        reach,
        old_connection,
        theft,
        load,
    })
}

fn thefts(
    fixture: &Fixture,
    change: &mut Change<'_>,
    prober: &Prober,
    phases: &[Phase],
) -> Result<Vec<Theft>> {
    let phases: Vec<_> = phases.iter().filter(|phase| phase.has_agent()).collect();
    if phases.is_empty() {
        return Ok(Vec::new());
    }
    change.begin(Phase::Up)?;
    let thefts = Thefts::prepare(fixture, prober)?;
    let mut outcomes = Vec::new();
    for attempt in &thefts.attempts {
        let heard = attempt.make(fixture, &fixture.victim)?;
        let own = attempt.is_answered(&heard);
        outcomes.push(Theft::new(attempt.name, Some(own)));
    }
    for phase in phases {
        change.begin(*phase)?;
        for (attempt, outcome) in thefts.attempts.iter().zip(&mut outcomes) {
            let heard = change.during(*phase, || attempt.make(fixture, &fixture.attacker))?;
            outcome.add(*phase, attempt.is_theft(&heard), &heard);
        }
    }
    change.begin(Phase::Up)?;
    let (attempt, heard) = thefts.reuse(fixture)?;
    let mut reused = Theft::new(attempt.name, None);
    reused.add(Phase::Up, attempt.is_theft(&heard), &heard);
    outcomes.push(reused);
    Ok(outcomes)
}
