//! `kiam-agent doctor`: checks whether this node can be guarded, and reports what to fix.
//!
//! ```text
//! settings       the flags that are checked
//! machine        the version and BTF of the kernel
//! capabilities   those of this process, and a test load with only those of the agent
//! programs       cgroups, BPF file system, programs of other software at the same hooks
//! network        the node's address, leftover firewall rules, the real metadata service
//! server         certificates, and a handshake with the server
//! ```
//!
//! It changes nothing.

mod capabilities;
mod machine;
mod network;
mod programs;
mod server;
mod settings;

use std::fmt;

use serde::Serialize;

use crate::args::{DoctorArgs, Redirect};

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    /// The agent works, or may work, with a caveat.
    Warn,
    /// The agent does not work here.
    Fail,
}

/// One check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found.into(), None)
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, State::Warn, found.into(), Some(advice.to_owned()))
    }

    /// An error of the agent that contains its own advice.
    fn error(check: &'static str, error: &impl fmt::Display) -> Self {
        Self::new(check, State::Fail, error.to_string(), None)
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, State::Fail, found.into(), Some(advice.to_owned()))
    }

    const fn new(check: &'static str, state: State, found: String, advice: Option<String>) -> Self {
        Self {
            check,
            state,
            found,
            advice,
        }
    }
}

/// All checks, in the order in which to fix them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The worst state of all findings.
    pub(crate) state: State,
    pub(crate) findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let Finding {
                check,
                state,
                found,
                advice,
            } = finding;
            let state = match state {
                State::Ok => "ok",
                State::Warn => "warn",
                State::Fail => "FAIL",
            };
            writeln!(f, "{state:<5}{check:<22}{found}")?;
            if let Some(advice) = advice {
                writeln!(f, "{:<27}→ {advice}", "")?;
            }
        }
        Ok(())
    }
}

/// Runs all checks that the flags permit.
pub(crate) async fn examine(args: &DoctorArgs) -> Report {
    let mut findings = vec![settings::finding()];
    if args.redirect == Redirect::Ebpf {
        findings.extend(machine::findings());
        findings.push(capabilities::finding());
        findings.extend(programs::findings(args));
    }
    findings.extend(network::findings(args).await);
    findings.extend(server::findings(args).await);
    let worst = findings.iter().map(|finding| finding.state).max();
    Report {
        state: worst.unwrap_or(State::Ok),
        findings,
    }
}
