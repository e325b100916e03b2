//! `cargo xtask fuzz`: the property tests of hostile input, for a given time, with new seeds each
//! round. `cargo xtask test` runs the same tests briefly.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::time::Instant;
use toolchain::cargo;

use testbed::kiam::last_executable;

/// A property test.
struct Target {
    name: &'static str,
    package: &'static str,
    /// Cargo's name of the target with the test.
    of: &'static str,
    test: &'static str,
    /// Cases of one round: some seconds.
    cases: u32,
}

const TARGETS: &[Target] = &[
    Target {
        name: "requests as bytes, through sockets",
        package: "kiam-agent",
        of: "--test=metadata",
        test: "fuzz::no_bytes_get_credentials_of_others_or_stop_the_service",
        cases: 5_000,
    },
    Target {
        name: "paths of requests",
        package: "kiam-agent",
        of: "--lib",
        test: "metadata::path::tests::a_canonical_path_stays_below_the_root_and_is_stable",
        cases: 20_000,
    },
    Target {
        name: "paths that are let through",
        package: "kiam-agent",
        of: "--lib",
        test: "metadata::passthrough::tests::paths_that_are_passed_on_never_lead_to_credentials",
        cases: 5_000,
    },
    Target {
        name: "tokens of IMDSv2",
        package: "kiam-agent",
        of: "--lib",
        test: "metadata::tokens::tests::changed_and_random_tokens_are_invalid",
        cases: 50_000,
    },
    Target {
        name: "paths of cgroups",
        package: "kiam-agent",
        of: "--lib",
        test: "kernel::cgroup::path::tests::no_path_panics",
        cases: 20_000,
    },
    Target {
        name: "messages of the server",
        package: "kiam-agent",
        of: "--lib",
        test: "stream::convert::tests::no_text_panics_or_passes_unbounded",
        cases: 20_000,
    },
    Target {
        name: "roles as annotated",
        package: "kiam-common",
        of: "--lib",
        test: "role::tests::every_name_that_resolves_is_an_arn",
        cases: 100_000,
    },
    Target {
        name: "annotations of pods and namespaces",
        package: "kiam-server",
        of: "--lib",
        test: "policy::tests::annotations_never_cause_a_panic_or_control_characters",
        cases: 10_000,
    },
];

/// Flags of `cargo xtask fuzz`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Time for each target
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Run only the targets whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Fails when a property does not hold, with the smallest case that shows it.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &Args) -> Result<()> {
    let wanted = |target: &&Target| {
        args.only
            .as_ref()
            .is_none_or(|part| target.name.contains(part))
    };
    let targets: Vec<_> = TARGETS.iter().filter(wanted).collect();
    ensure!(!targets.is_empty(), "no target has this in its name");
    for target in targets {
        let binary = target.build()?;
        let (begin, used, mut cases) = (Instant::now(), processor_time()?, 0_u64);
        while begin.elapsed() < Duration::from_secs(args.seconds) {
            target.round(&binary)?;
            cases += u64::from(target.cases);
        }
        let seconds = begin.elapsed().as_secs();
        let used = (processor_time()? - used).num_seconds();
        println!(
            "ok  {:<38}{cases:>12} cases in {seconds} s, {used} s of a core",
            target.name
        );
    }
    Ok(())
}

/// Processor time of all ended child processes, by `getrusage(2)`: beside other work it is less
/// than the elapsed time.
fn processor_time() -> Result<TimeVal> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.user_time() + usage.system_time())
}

impl Target {
    /// The program that holds the test.
    fn build(&self) -> Result<PathBuf> {
        let mut command = cargo();
        command
            .args(["test", "--locked", "--no-run", "--message-format=json"])
            .args(["--profile", "fuzz"])
            .args(["-p", self.package, self.of]);
        let output = command.output().context("cannot run cargo")?;
        ensure!(
            output.status.success(),
            "{} does not compile: {}",
            self.package,
            String::from_utf8_lossy(&output.stderr)
        );
        let messages = String::from_utf8_lossy(&output.stdout);
        let found = last_executable(&messages, |message| message["profile"]["test"] == true);
        found.with_context(|| format!("cargo built no tests of {}", self.package))
    }

    fn round(&self, binary: &PathBuf) -> Result<()> {
        let mut command = Command::new(binary);
        command
            .args(["--exact", self.test])
            .env("PROPTEST_CASES", self.cases.to_string())
            // What is found goes to the terminal, and then into a test by name.
            .env("PROPTEST_FAILURE_PERSISTENCE", "off");
        let output = command.output().context("cannot run the test")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{}: {stdout}", self.name);
        }
        ensure!(
            stdout.contains("1 passed"),
            "{} was not run: {stdout}",
            self.test
        );
        Ok(())
    }
}
