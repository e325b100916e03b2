//! The programs of iptables, run without a shell and with a timeout.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::error::IptablesError;
use super::plan::{CHAIN, Family, Listing, Table};

/// Maximum time that iptables waits for the lock, in seconds.
const WAIT_SECONDS: &str = "5";
/// Maximum time for one program, waiting for the lock included.
const LIMIT: Duration = Duration::from_secs(10);

/// Implementation of iptables: the rules of one are invisible in the other, and both are in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The only one that is installed.
    Plain,
    /// nftables.
    Nft,
    /// The legacy tables of the kernel.
    Legacy,
}

impl Variant {
    /// Returns the name of the program, for logs.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Plain => "iptables",
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        }
    }
}

/// The programs of one variant for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) variant: Variant,
    pub(super) family: Family,
}

impl Tool {
    /// Returns whether the program is installed.
    pub(super) async fn is_there(self) -> Result<bool, IptablesError> {
        match run(&self.program(""), &["--version"], None).await {
            Ok(_version) => Ok(true),
            Err(IptablesError::Run { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Prints all tables in use, without creating any.
    pub(super) async fn save(self) -> Result<String, IptablesError> {
        run(&self.program("-save"), &[], None).await
    }

    /// Reads the relevant chains of a table.
    pub(super) async fn list(self, table: Table) -> Result<Listing, IptablesError> {
        let mut hooks = Vec::new();
        for hook in table.hooks() {
            hooks.extend(Listing::rules(&self.list_chain(table, hook).await?));
        }
        // A missing chain is reported only as a failure; other failures occur above too.
        let chain = match self.list_chain(table, CHAIN).await {
            Ok(printed) => Some(Listing::rules(&printed).collect()),
            Err(IptablesError::Failed { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Listing { hooks, chain })
    }

    /// Applies a script as one transaction.
    pub(super) async fn restore(self, script: &str) -> Result<(), IptablesError> {
        let args = ["--noflush", "-w", WAIT_SECONDS];
        run(&self.program("-restore"), &args, Some(script)).await?;
        Ok(())
    }

    async fn list_chain(self, table: Table, chain: &str) -> Result<String, IptablesError> {
        let args = ["-w", WAIT_SECONDS, "-t", table.name(), "-S", chain];
        run(&self.program(""), &args, None).await
    }

    fn program(self, what: &str) -> String {
        let name = match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{name}{}{what}", self.variant.suffix())
    }
}

async fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, IptablesError> {
    let command = || [&[program], args].concat().join(" ");
    let failed = |source| IptablesError::Run {
        command: command(),
        source,
    };
    let running = async {
        let mut child = Command::new(program)
            .args(args)
            .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // A script is smaller than a pipe. A write error shows in the exit status.
            drop(stdin.write_all(input.as_bytes()).await);
        }
        child.wait_with_output().await
    };
    let ended = tokio::time::timeout(LIMIT, running).await;
    let output = match ended {
        Ok(output) => output.map_err(failed)?,
        Err(_elapsed) => {
            return Err(IptablesError::Slow {
                command: command(),
                limit: LIMIT,
            });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(IptablesError::Failed {
        command: command(),
        status: output.status,
        stderr: stderr.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}
