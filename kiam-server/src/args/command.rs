//! What the server's program does other than to serve.

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Subcommand as _};
use kiam_common::duration;
use kiam_common::flags::TlsFlags;
use kiam_common::server_address::ServerAddress;

use super::Args;

/// What the program is to do.
#[derive(Debug, Clone)]
pub enum Cli {
    /// To serve.
    Run(Box<Args>),
    /// Something else, and to end.
    Command(Command),
}

impl Cli {
    /// The command line, as clap knows it.
    #[must_use]
    pub fn command() -> clap::Command {
        let run = Args::command();
        let about = run.get_about().cloned();
        Command::augment_subcommands(run)
            // Commands' own description would stand in its place.
            .about(about.unwrap_or_default())
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_required(false)
            .arg_required_else_help(false)
    }

    /// Reads the command line.
    ///
    /// # Errors
    /// When it is no command line of the server's, or asks for help.
    pub fn try_parse_from(
        words: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        if matches.subcommand_name().is_some() {
            Command::from_arg_matches(&matches).map(Self::Command)
        } else {
            Args::from_arg_matches(&matches).map(|args| Self::Run(Box::new(args)))
        }
    }
}

/// What the program does other than to serve.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Asks a server whether it serves agents, and ends with 0 if it does: for probes
    Health(Box<HealthArgs>),
}

/// What `kiam-server health` is told, named as kiam named it.
#[derive(Debug, Clone, clap::Args)]
pub struct HealthArgs {
    /// The server; its certificate must be for HOST
    #[arg(long, default_value = "localhost:9610", value_name = "HOST:PORT")]
    pub server_address: ServerAddress,

    /// Try again for this long
    #[arg(long, default_value = "1s", value_parser = duration::parse, value_name = "DURATION")]
    pub timeout: Duration,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub tls: TlsFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub compat: HealthCompatFlags,
}

/// Flags of `kiam health` without a meaning here: it logs nothing, and `--timeout` bounds it all.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct HealthCompatFlags {
    #[arg(long, hide = true)]
    json_log: bool,
    #[arg(long, hide = true)]
    level: Option<String>,
    #[arg(long, hide = true)]
    server_address_refresh: Option<String>,
    #[arg(long, hide = true)]
    gateway_timeout_creation: Option<String>,
    #[arg(long, hide = true, alias = "grpc-keepalive-time-ms")]
    grpc_keepalive_time_duration: Option<String>,
    #[arg(long, hide = true, alias = "grpc-keepalive-timeout-ms")]
    grpc_keepalive_timeout_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_keepalive_permit_without_stream: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stand_beside_the_server_s_own_flags() {
        Cli::command().debug_assert();
        let tls = ["--cert=c", "--key=k", "--ca=a"];
        let parse =
            |words: &[&str]| Cli::try_parse_from(["kiam-server"].iter().chain(words).chain(&tls));
        assert!(matches!(parse(&[]), Ok(Cli::Run(_))));
        // kiam v4.2, deploy/server.daemonset.yaml, but for the program's name.
        let probe = [
            "health",
            "--server-address=127.0.0.1:443",
            "--server-address-refresh=2s",
            "--timeout=5s",
            "--gateway-timeout-creation=1s",
        ];
        let Ok(Cli::Command(Command::Health(args))) = parse(&probe) else {
            panic!("no health");
        };
        assert_eq!(args.server_address.to_string(), "127.0.0.1:443");
        assert_eq!(args.timeout, Duration::from_secs(5));
        for (words, part) in [
            (["health", "--server-address=x"], "no port"),
            (["health", "--timeout=5"], "a unit"),
            (["health", "--time=5s"], "--timeout"),
            (["helth", "--timeout=5s"], "health"),
        ] {
            let error = parse(&words).unwrap_err().to_string();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}
