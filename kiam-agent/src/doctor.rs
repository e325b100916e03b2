//! `kiam-agent doctor`: whether this node can be guarded, and if not, what to do.
//!
//! ```text
//! settings       whose flags are checked
//! machine        the kernel's version, its description of itself
//! capabilities   what this process has, and a load without attaching by the agent's alone
//! programs       cgroups, BPF file system, others on the same hooks
//! network        the node's address, rules that others have left, the real metadata service
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

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, or may, but somebody should know.
    Warn,
    /// An agent does not work here.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How it ended.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found.into(), None)
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, State::Warn, found.into(), Some(advice.to_owned()))
    }

    /// An error of the agent's, which says itself what to do.
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

/// All checks, in the order in which they are best mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of all.
    pub state: State,
    /// Each.
    pub findings: Vec<Finding>,
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

/// Makes all checks that the flags allow.
pub async fn examine(args: &DoctorArgs) -> Report {
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
