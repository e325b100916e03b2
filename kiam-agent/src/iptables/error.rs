//! Why the node's firewall does not do its part, in the words of those who run the node.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::plan::{Family, Table};

/// Why the node's firewall does not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IptablesError {
    /// There is no such program.
    #[error(
        "there is no program iptables: with --redirect=iptables the agent needs iptables and ip6tables, with their -save and -restore, in its PATH"
    )]
    NoProgram,
    /// A program does not start or cannot be waited for.
    #[error("cannot run {command}: {source}")]
    Run {
        /// As one would type it.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program said no.
    #[error("{command} failed ({status}): {said}{}", hint(said))]
    Failed {
        /// As one would type it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its standard error, on one line.
        said: String,
    },
    /// A program did not end.
    #[error("{command} did not end within {limit:?}; it was stopped")]
    Slow {
        /// As one would type it.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// Rules were taken, and are not there.
    #[error(
        "the {} rules of the table {} were taken, but {found} of {expected} are there: does another program remove them?",
        family.as_label(),
        table.name()
    )]
    NotThere {
        /// IPv4 or IPv6.
        family: Family,
        /// The table.
        table: Table,
        /// How many rules there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// What helps against the commonest.
fn hint(said: &str) -> &'static str {
    if said.contains("Permission denied") || said.contains("not permitted") {
        "; the agent needs the capabilities NET_ADMIN and NET_RAW"
    } else if said.contains("xtables lock") || said.contains("xtables.lock") {
        "; another program holds the lock: is the node's /run/xtables.lock mounted, and writable?"
    } else {
        ""
    }
}
