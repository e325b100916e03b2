//! Errors of the node's firewall.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::plan::{Family, Table};

/// Error of the node's firewall.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IptablesError {
    /// No variant of iptables is installed.
    #[error(
        "iptables not found: with --redirect=iptables the agent needs iptables and ip6tables, with their -save and -restore, in its PATH"
    )]
    NoProgram,
    /// A program cannot be started or waited for.
    #[error("cannot run {command}: {source}")]
    Run {
        /// The command line.
        command: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A program exited with a failure.
    #[error("{command} failed ({status}): {stderr}{}", hint(stderr))]
    Failed {
        /// The command line.
        command: String,
        /// The exit status.
        status: ExitStatus,
        /// Standard error, on one line.
        stderr: String,
    },
    /// A program did not exit in time.
    #[error("{command} did not exit within {limit:?} and was stopped")]
    Slow {
        /// The command line.
        command: String,
        /// The timeout.
        limit: Duration,
    },
    /// Rules were accepted, but are missing afterwards.
    #[error(
        "iptables accepted the {} rules of the table {}, but {found} of {expected} are present; check whether another program removes them",
        family.as_label(),
        table.name()
    )]
    NotThere {
        /// IPv4 or IPv6.
        family: Family,
        /// The affected table.
        table: Table,
        /// Number of rules that were installed.
        expected: usize,
        /// Number of rules that are present.
        found: usize,
    },
}

/// Returns advice for the most common errors.
fn hint(stderr: &str) -> &'static str {
    if stderr.contains("Permission denied") || stderr.contains("not permitted") {
        "; the agent needs the capabilities NET_ADMIN and NET_RAW"
    } else if stderr.contains("xtables lock") || stderr.contains("xtables.lock") {
        "; another program holds the lock: check that the node's /run/xtables.lock is mounted and writable"
    } else {
        ""
    }
}
