//! `cargo xtask instructions`: the instructions of one request for credentials, against a recorded
//! budget. Their number does not depend on the speed or load of a machine.
//!
//! `kiam-bench` (release) asks the agent's own metadata service; callgrind counts a run of so many
//! requests and one of twice as many, and the difference is theirs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toolchain::{Consent, exec, kernel, prepare, workspace};

use testbed::kiam;

/// Enough to make the instructions of timers negligible.
const REQUESTS: u64 = 2000;
/// More than this is a failure: one part in twenty.
const PARTS: u64 = 20;
/// File of the recorded number.
const BUDGET: &str = "xtask/bench/requests/instructions.budget";

/// Flags of `cargo xtask instructions`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Record the counted number as the budget
    #[arg(long)]
    pub record: bool,

    /// Consent to installations
    #[command(flatten)]
    pub consent: Consent,
}

/// Runs the command.
///
/// # Errors
/// Fails when a request takes 5 % more instructions than recorded, or cannot be counted.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        kernel::plan(plan);
        plan.program("valgrind", "valgrind", "counts a program's instructions");
        Ok(())
    })?;
    kernel::run(&kernel::Args::default())?;
    let program = kiam::requests_release()?;
    let one = counted(&program, REQUESTS)?;
    let two = counted(&program, 2 * REQUESTS)?;
    let each = two.saturating_sub(one) / REQUESTS;
    let file = workspace().join(BUDGET);
    if args.record {
        std::fs::write(&file, format!("{each}\n"))?;
        println!("{each} instructions a request, recorded in {BUDGET}");
        return Ok(());
    }
    let budget = budget(&file)?;
    println!("{each} instructions a request; the budget is {budget}");
    compare(each, budget)
}

fn budget(file: &Path) -> Result<u64> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let number = text.trim().parse();
    number.with_context(|| format!("{} holds no number", file.display()))
}

fn compare(each: u64, budget: u64) -> Result<()> {
    ensure!(
        each <= budget + budget / PARTS,
        "a request takes {each} instructions, which is more than 5 % above {budget}, the budget. \
         See where they go with callgrind, or record them: cargo xtask instructions --record"
    );
    Ok(())
}

/// Counts the instructions of a run with a number of requests.
fn counted(program: &Path, requests: u64) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let log: PathBuf = folder.path().join("log");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", log.display()))
        .arg(program)
        .arg(requests.to_string());
    exec(&mut command)?;
    collected(&std::fs::read_to_string(log)?)
}

fn collected(log: &str) -> Result<u64> {
    let mut lines = log
        .lines()
        .filter_map(|line| line.split_once("Collected : "));
    let (_, number) = lines.next().context("callgrind reports no number")?;
    Ok(number.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_above_the_budget_is_the_most_there_may_be() {
        for (each, is_within) in [(900, true), (1000, true), (1050, true), (1051, false)] {
            assert_eq!(compare(each, 1000).is_ok(), is_within, "{each}");
        }
    }

    #[test]
    fn the_instructions_of_callgrind_are_read() {
        let log = "==7== Events    : Ir\n==7== Collected : 81223\n==7==\n";
        assert_eq!(collected(log).unwrap(), 81223);
        assert!(collected("==7== Events    : Ir\n").is_err());
    }
}
