//! The command `test`: all tests that need no cluster, and one line that counts them.
//!
//! It installs the tools, builds the kernel programs and kiam's programs, and runs `cargo test` for
//! the workspace. The tests that need root are marked `#[ignore]`, so that a plain `cargo test`
//! passes on any machine; this command runs them with the others.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context as _, Result, bail};
use toolchain::{Consent, cargo, kernel, prepare};

use suites::patched::Patch;
use testbed::kiam::PROGRAMS;
use testbed::test_output::Outcome;
use testbed::{sandbox, sdk};

const INCLUDE_IGNORED: &str = "--include-ignored";

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
/// Fails when something cannot be set up, a test fails, or, with `CI=true`, was skipped.
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        sdk::plan(plan)?;
        plan.program("chromium", "chromium", "shows the status page, headless");
        Ok(())
    })?;
    let programs = Patch::NextLayout.build_beside()?;
    let missing = sandbox::missing();
    let mut command = cargo();
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(arguments(&args.more, missing.is_none()))
        .env(PROGRAMS, programs.folder());
    let outcome = run_tests(command)?;
    conclude(&outcome, missing.as_deref())
}

/// Arguments of `cargo test`: by default for the whole workspace, and with the ignored tests where
/// these can run.
fn arguments(more: &[OsString], include_ignored: bool) -> Vec<OsString> {
    let separator = more.iter().position(|argument| argument == "--");
    let (for_cargo, for_tests) = more.split_at(separator.unwrap_or(more.len()));
    let workspace = more.is_empty().then_some(OsStr::new("--workspace"));
    let ignored = include_ignored.then_some(OsStr::new(INCLUDE_IGNORED));
    let for_cargo = for_cargo.iter().map(OsString::as_os_str).chain(workspace);
    let for_tests = for_tests.iter().skip(1).map(OsString::as_os_str);
    for_cargo
        .chain([OsStr::new("--")])
        .chain(ignored)
        .chain(for_tests)
        .map(OsStr::to_owned)
        .collect()
}

/// Runs cargo's tests, shows their output as it arrives, and counts them.
fn run_tests(mut command: Command) -> Result<Outcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    // cargo writes to standard error, the tests to standard output.
    let (lines, received) = mpsc::channel();
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
        for line in received {
            // A closed standard output does not end the tests.
            let _ = stdout.write_all(&line);
            outcome.read(&String::from_utf8_lossy(&line));
        }
    });
    let status = child.wait().context("cannot wait for cargo test")?;
    outcome.end(status.success());
    Ok(outcome)
}

/// Prints the counts, alone on the last line, and fails when a test failed or, in CI, was skipped.
#[expect(clippy::print_stdout, reason = "the command's result")]
fn conclude(outcome: &Outcome, missing: Option<&str>) -> Result<()> {
    if let Some(missing) = missing {
        println!("\nskipped the tests marked #[ignore]: this machine lacks {missing}");
    }
    println!("\n{outcome}");
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    match outcome {
        Outcome { failed: 1.., .. } => bail!("tests failed"),
        Outcome { passed: 0, .. } => bail!("no test was run"),
        Outcome { skipped: 1.., .. } if in_ci => {
            bail!("tests were skipped, which is a failure with CI=true")
        }
        Outcome { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tests_are_included_where_they_can_run() {
        for (more, include_ignored, expected) in [
            (&[][..], true, "--workspace -- --include-ignored"),
            (&[], false, "--workspace --"),
            (&["-p", "testbed"], true, "-p testbed -- --include-ignored"),
            (&["--", "sdk"], true, "-- --include-ignored sdk"),
            (&["-p", "a", "--", "b"], false, "-p a -- b"),
        ] {
            let more: Vec<_> = more.iter().map(OsString::from).collect();
            let arguments = arguments(&more, include_ignored).join(OsStr::new(" "));
            assert_eq!(arguments, expected);
        }
    }
}
