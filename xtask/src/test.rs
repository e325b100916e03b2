//! `cargo xtask test`: everything that needs no cluster, and one line that says what came of it.
//!
//! Sets up what is needed, builds the kernel programs and kiam's programs, and lets cargo run all
//! tests of the workspace: unit tests first, then the sandbox tests with real kernel programs,
//! which a plain `cargo test` skips. Nothing is run twice.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context as _, Result, bail};
use toolchain::{Consent, cargo, kernel, prepare};

use testbed::kiam::{NEXT_LAYOUT, PROGRAMS, Programs};
use testbed::test_output::Outcome;
use testbed::{sandbox, sdk};

/// Flags of `cargo xtask test`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// More arguments of cargo test, such as -p kiam-agent, or -- NAME
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    more: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be set up, a test fails, or, with `CI=true`, was skipped.
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        sdk::plan(plan)?;
        plan.program("chromium", "chromium", "shows the status page, headless");
        Ok(())
    })?;
    let programs = Programs::build_beside(NEXT_LAYOUT)?;
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    if args.more.is_empty() {
        command.arg("--workspace");
    }
    command.args(&args.more).env(PROGRAMS, programs.folder());
    conclude(&tests(command)?)
}

/// Runs cargo's tests, shows what they print as it comes, and counts.
fn tests(mut command: Command) -> Result<Outcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    // What cargo says (standard error) and what the tests say tell one story together.
    let (lines, told) = mpsc::channel();
    let mut outcome = Outcome::default();
    std::thread::scope(|scope| {
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let lines = lines.clone();
            scope.spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut line = Vec::new();
                while matches!(stream.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                    if lines.send(std::mem::take(&mut line)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(lines);
        let mut stdout = std::io::stdout();
        for line in told {
            // Whoever reads it may have left; the tests are counted all the same.
            let _ = stdout.write_all(&line);
            outcome.read(&String::from_utf8_lossy(&line));
        }
    });
    let status = child.wait().context("cannot wait for cargo test")?;
    outcome.end(status.success());
    Ok(outcome)
}

/// Prints the line that counts, alone on a line.
#[expect(clippy::print_stdout, reason = "the command's result")]
fn conclude(outcome: &Outcome) -> Result<()> {
    println!("\n{outcome}");
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    match outcome {
        Outcome { failed: 1.., .. } => bail!("tests failed"),
        Outcome { passed: 0, .. } => bail!("no test was run"),
        Outcome { skipped: 1.., .. } if in_ci => {
            bail!("tests were skipped, and must not be in CI")
        }
        Outcome { .. } => Ok(()),
    }
}
