//! Installation plan: shown, confirmed, carried out.

use std::fmt;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use crate::apt::{self, Package};
use crate::find_program;

/// Flags for installations.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Consent {
    /// Install missing parts without asking
    #[arg(long, short)]
    pub yes: bool,
}

/// Installs whatever `add` adds to a plan: Debian packages first, then what is built or fetched
/// into the user's cache folder. Lists the parts and their purposes, asks once on a terminal, and
/// can be repeated at any time.
///
/// # Errors
/// Fails when the user declines, this is not root, the system is not Debian's, or something fails.
pub fn prepare(consent: Consent, add: impl FnOnce(&mut Plan) -> Result<()>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let again: Vec<_> = std::env::args().skip(1).collect();
        bail!(
            "this makes network namespaces and cgroups, and so needs root; try\n  \
             sudo --preserve-env=HOME,PATH cargo xtask {}",
            again.join(" ")
        );
    }
    let mut plan = Plan::default();
    add(&mut plan)?;
    let ask = !consent.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    plan.carry_out(ask)
}

/// Something that is built or fetched.
pub struct Step {
    /// Name of the installed part, and its destination.
    pub what: String,
    /// Purpose.
    pub why: &'static str,
    /// Time that it takes on a small machine, if worth mentioning.
    pub about: Option<Duration>,
    /// Does it.
    pub run: Box<dyn FnOnce() -> Result<()>>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Step").field(&self.what).finish()
    }
}

/// Everything that is missing.
#[derive(Debug, Default)]
pub struct Plan {
    packages: Vec<Package>,
    steps: Vec<Step>,
}

impl Plan {
    /// Adds a package, once.
    pub fn package(&mut self, package: Package) {
        if !self.packages.iter().any(|known| known.name == package.name) {
            self.packages.push(package);
        }
    }

    /// Adds the package that brings a program, unless it is there.
    pub fn program(&mut self, program: &str, name: &'static str, why: &'static str) {
        if find_program(program).is_none() {
            self.package(Package { name, why });
        }
    }

    /// Adds a step; steps are done in order, after all packages.
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Lists what is missing, asks for consent, and installs it.
    #[expect(clippy::print_stderr, reason = "shows progress to the user")]
    fn carry_out(self, ask: bool) -> Result<()> {
        if self.packages.is_empty() && self.steps.is_empty() {
            return Ok(());
        }
        eprint!("{self}");
        if ask && !agreed()? {
            bail!("nothing was installed");
        }
        if !self.packages.is_empty() {
            timed("Debian packages", || apt::install(&self.packages))?;
        }
        for step in self.steps {
            timed(&step.what, step.run)?;
        }
        eprintln!();
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Some things are needed that this machine has not yet:\n")?;
        let mut why = None;
        for package in &self.packages {
            if why.replace(package.why) == Some(package.why) {
                writeln!(f, "  Debian package {:<14} (the same)", package.name)?;
            } else {
                writeln!(f, "  Debian package {:<14} {}", package.name, package.why)?;
            }
        }
        for Step {
            what, why, about, ..
        } in &self.steps
        {
            writeln!(f, "  {what}\n{:17}{why}{}", "", minutes(*about))?;
        }
        writeln!(f)
    }
}

fn minutes(about: Option<Duration>) -> String {
    about.map_or_else(String::new, |about| {
        format!("; about {} min", about.as_secs().div_ceil(60))
    })
}

#[expect(clippy::print_stderr, reason = "asks the user")]
fn agreed() -> Result<bool> {
    eprint!("Install them? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    Ok(matches!(
        answer.trim().to_lowercase().as_str(),
        "" | "y" | "yes"
    ))
}

#[expect(clippy::print_stderr, reason = "shows progress to the user")]
fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = if std::io::stderr().is_terminal() {
        "\r"
    } else {
        "\n"
    };
    eprint!("  … {what}");
    let begin = Instant::now();
    let result = run().with_context(|| format!("cannot install: {what}"));
    match &result {
        Ok(()) => eprintln!("{over}  ✓ {what} ({:.0?})", begin.elapsed()),
        Err(_) => eprintln!("{over}  ✗ {what}"),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installations_are_listed_with_purpose_and_duration() {
        let mut plan = Plan::default();
        let package = Package {
            name: "iproute2",
            why: "makes namespaces",
        };
        plan.package(package);
        plan.package(package);
        let why = "links programs";
        let about = Some(Duration::from_secs(150));
        plan.step(Step {
            what: "a linker, into ~/.cache".into(),
            why,
            about,
            run: Box::new(|| Ok(())),
        });
        let text = plan.to_string();
        assert_eq!(text.matches("iproute2").count(), 1, "{text}");
        for part in [
            "makes namespaces",
            "a linker, into ~/.cache",
            "links programs; about 3 min",
        ] {
            assert!(text.contains(part), "{text}");
        }
        plan.packages.clear();
        plan.carry_out(false).unwrap();
    }

    #[test]
    fn a_step_that_fails_is_named() {
        let mut plan = Plan::default();
        let run = || bail!("no room");
        plan.step(Step {
            what: "a linker".into(),
            why: "",
            about: None,
            run: Box::new(run),
        });
        let error = plan.carry_out(false).unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot install: a linker: no room");
    }
}
