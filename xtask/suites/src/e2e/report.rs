//! Results of the checks: a row for each, and a summary in the last line.

#![expect(clippy::print_stdout, reason = "the command's result")]

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Result, bail};

/// Behind the names stands how long it took.
const NAME_WIDTH: usize = 70;

/// Observations and figures of a check, for the table.
pub(super) type Facts = Vec<String>;

/// Prints rows as they come, and counts them.
#[derive(Debug, Default)]
pub(super) struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    /// Records the result of a check.
    pub(super) fn add(&mut self, name: &str, took: Duration, outcome: &Result<Facts>) {
        match outcome {
            Ok(facts) => {
                self.passed += 1;
                row(Mark::Passed, name, &short(took));
                for fact in facts {
                    println!("            {fact}");
                }
            }
            Err(error) => {
                self.failed += 1;
                row(Mark::Failed, name, &short(took));
                println!("            {error:#}");
            }
        }
    }

    /// Takes note of a check that cannot run.
    pub(super) fn skip(&mut self, name: &str) {
        self.skipped += 1;
        row(Mark::Skipped, name, "");
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Prints the line that counts, alone on a line.
    ///
    /// # Errors
    /// Fails when a check failed, or none could run; with `CI=true` also when one was skipped.
    pub(super) fn conclude(&self) -> Result<()> {
        println!("\n{self}");
        let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        match self {
            Self { failed: 1.., .. } => bail!("the end-to-end test failed"),
            Self { passed: 0, .. } => bail!("no check could run"),
            Self { skipped: 1.., .. } if in_ci => {
                bail!("checks were skipped, and must not be in CI")
            }
            Self { .. } => Ok(()),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Milliseconds up to a second, then seconds.
pub(super) fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[derive(Clone, Copy)]
enum Mark {
    Passed,
    Failed,
    Skipped,
}

fn row(mark: Mark, name: &str, took: &str) {
    let (word, colour) = match mark {
        Mark::Passed => ("ok", 32),
        Mark::Failed => ("FAILED", 31),
        Mark::Skipped => ("skipped", 33),
    };
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let rest = format!("{name:<NAME_WIDTH$} {took:>8}");
    let rest = rest.trim_end();
    if wanted && std::io::stdout().is_terminal() {
        println!("  \u{1b}[{colour}m{word:<8}\u{1b}[0m  {rest}");
    } else {
        println!("  {word:<8}  {rest}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_counts_once_and_only_passed_checks_are_successes() {
        let mut report = Report::default();
        report.skip("c");
        assert!(report.conclude().is_err(), "nothing ran");
        report.add("a", Duration::ZERO, &Ok(vec!["seen".into()]));
        assert!(!report.has_failed());
        report.add("b", Duration::ZERO, &Err(anyhow::anyhow!("why")));
        assert_eq!(report.to_string(), "1 passed, 1 failed, 1 skipped");
        assert!(report.has_failed() && report.conclude().is_err());
    }

    #[test]
    fn times_are_short() {
        assert_eq!(short(Duration::from_micros(84_900)), "84 ms");
        assert_eq!(short(Duration::from_millis(1_249)), "1.2 s");
    }
}
