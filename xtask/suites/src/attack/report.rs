//! Results of the attempts.

use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::Phase;

/// Result of the command.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Attempts to reach the metadata service.
    pub reach: Vec<Reached>,
    /// A connection from before the first agent, when that is there.
    pub old_connection: OldConnection,
    /// Attempts to get another pod's credentials.
    pub theft: Vec<Theft>,
    /// Requests of the victim itself while agents were replaced.
    pub load: Load,
}

/// A connection to the metadata service that is older than any guard.
#[derive(Debug, Clone, Serialize)]
pub struct OldConnection {
    /// Packets that reached the service while nothing guarded it.
    pub before: usize,
    /// Packets of the connection that reached it once an agent ran.
    pub after: usize,
}

/// An attempt to reach the metadata service.
#[derive(Debug, Clone, Serialize)]
pub struct Reached {
    /// Name of the attempt.
    pub attack: &'static str,
    /// Packets that reached the service while nothing guarded it.
    pub unguarded: usize,
    /// True if there must be some.
    pub works: bool,
    /// Packets that reached it, by the state of the agent.
    pub packets: Vec<(Phase, usize)>,
}

/// An attempt to get another pod's credentials.
#[derive(Debug, Clone, Serialize)]
pub struct Theft {
    /// Name of the attempt.
    pub attack: &'static str,
    /// True if the victim itself got an answer to the same request, as it must; none where there is
    /// no victim any more.
    pub own: Option<bool>,
    /// True if a reply of the victim's was received, by the state of the agent.
    pub stolen: Vec<(Phase, bool)>,
    /// Start of the first reply.
    pub heard: String,
}

/// A pod's own requests while other things happen.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Load {
    /// Number of requests.
    pub requests: usize,
    /// Number of requests that were not answered with 200.
    pub failed: usize,
}

impl Theft {
    pub(super) const fn new(attack: &'static str, own: Option<bool>) -> Self {
        Self {
            attack,
            own,
            stolen: Vec::new(),
            heard: String::new(),
        }
    }

    pub(super) fn add(&mut self, phase: Phase, stolen: bool, heard: &str) {
        self.stolen.push((phase, stolen));
        if self.heard.is_empty() {
            let line = heard.lines().find(|line| !line.is_empty());
            self.heard = line.unwrap_or_default().chars().take(60).collect();
        }
    }
}

impl Report {
    /// Checks that every attempt is valid, and that none has succeeded.
    ///
    /// # Errors
    /// Fails when one is not valid, or has succeeded.
    pub fn check(&self) -> Result<()> {
        for reached in &self.reach {
            ensure!(
                reached.unguarded > 0 || !reached.works,
                "{} reaches nothing where nothing guards: it is no attack",
                reached.attack
            );
            for (phase, packets) in &reached.packets {
                ensure!(
                    *packets == 0,
                    "{} reached the metadata service, with the agent {phase:?}",
                    reached.attack
                );
            }
        }
        let OldConnection { before, after } = self.old_connection;
        ensure!(before > 0, "there was no connection before the agent");
        ensure!(
            after == 0,
            "a connection from before the agent is still open"
        );
        for theft in &self.theft {
            let Theft { attack, heard, .. } = theft;
            ensure!(
                theft.own != Some(false),
                "{attack} gets the victim itself nothing: it is no attack ({heard})"
            );
            for (phase, stolen) in &theft.stolen {
                ensure!(!stolen, "{attack}, with the agent {phase:?}: {heard}");
            }
        }
        let Load { requests, failed } = self.load;
        ensure!(
            failed == 0,
            "{failed} of the victim's {requests} requests failed while agents were replaced"
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<42}{:>11}", "packets at the service", "unguarded")?;
        let phases = self.reach.first().map_or(&[][..], |first| &first.packets);
        heads(f, phases)?;
        for reached in &self.reach {
            write!(f, "{:<42}{:>11}", reached.attack, reached.unguarded)?;
            for (_, packets) in &reached.packets {
                write!(f, "{packets:>10}")?;
            }
            writeln!(f)?;
        }
        let OldConnection { before, after } = self.old_connection;
        writeln!(
            f,
            "{:<42}{before:>11}{after:>10}",
            "a connection from before"
        )?;
        writeln!(f)?;
        let Some(first) = self.theft.first() else {
            return write!(f, "no thefts were tried: no agent runs in these states");
        };
        write!(f, "{:<42}{:>11}", "another pod's credentials", "its own")?;
        heads(f, &first.stolen)?;
        for theft in &self.theft {
            let own = match theft.own {
                Some(true) => "answered",
                Some(false) => "NOTHING",
                None => "-",
            };
            write!(f, "{:<42}{own:>11}", theft.attack)?;
            for (phase, _) in &first.stolen {
                let at = theft.stolen.iter().find(|(of, _)| of == phase);
                let word = match at {
                    Some((_, true)) => "STOLEN",
                    Some((_, false)) => "nothing",
                    None => "-",
                };
                write!(f, "{word:>10}")?;
            }
            writeln!(f, "  {}", theft.heard)?;
        }
        let Load { requests, failed } = self.load;
        write!(
            f,
            "\nthe victim's own requests while agents were replaced: {requests}, {failed} failed"
        )
    }
}

fn heads<T>(f: &mut fmt::Formatter<'_>, phases: &[(Phase, T)]) -> fmt::Result {
    for (phase, _) in phases {
        write!(f, "{:>10}", format!("{phase:?}").to_lowercase())?;
    }
    writeln!(f)
}
