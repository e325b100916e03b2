//! The commands of the program, and their flags.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::flags::TlsFlags;
use kiam_common::server_address::ServerAddress;

use super::{Args, ClusterFlags, RoleFlags, ServiceAccountName, ServiceAccountNameError};

/// The command line of the server.
pub type Cli = kiam_common::cli::Cli<Args, Command>;

/// A command of the program.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Check whether a server serves agents, for probes
    Health(Box<HealthArgs>),

    /// Explain why a pod gets the credentials of its role, or why not and what to do
    ///
    /// Reads the Kubernetes API, and asks a running server if it is reachable (in its pod, or
    /// through kubectl port-forward). The exit code is 0 if the pod gets its credentials, 1 if not,
    /// and 2 if that is unknown.
    Explain(Box<ExplainArgs>),

    /// List the metrics that a server can have, as JSON
    Metrics,
}

/// Flags of `kiam-server explain`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// Kind of the object to explain
    #[arg(value_enum)]
    pub kind: Explained,

    /// Namespace and name of the object
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: PodName,

    /// Explain whether the pod gets this role, given by its name, path or ARN
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Admin port of a running server (its --prometheus-listen-addr)
    #[arg(long, default_value = "127.0.0.1:9620", value_name = "IP:PORT")]
    pub server: SocketAddr,

    #[command(flatten)]
    pub cluster: ClusterFlags,

    #[command(flatten)]
    pub roles: RoleFlags,
}

/// The kind of an object that can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Explained {
    /// A pod
    Pod,
}

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl FromStr for PodName {
    type Err = ServiceAccountNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ServiceAccountName { namespace, name } = text.parse()?;
        Ok(Self { namespace, name })
    }
}

/// Flags of `kiam-server health`, with the names of kiam.
#[derive(Debug, Clone, clap::Args)]
pub struct HealthArgs {
    /// Address of the server, whose certificate must be valid for HOST
    #[arg(long, default_value = "localhost:9610", value_name = "HOST:PORT")]
    pub server_address: ServerAddress,

    /// Retry until this time is over
    #[arg(long, default_value = "1s", value_parser = duration::parse, value_name = "DURATION")]
    pub timeout: Duration,

    #[command(flatten)]
    pub tls: TlsFlags,

    #[command(flatten)]
    pub compat: HealthCompatFlags,
}

/// Flags of `kiam health` that have no effect: the command logs nothing, and `--timeout` is the
/// only limit.
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
    fn commands_and_the_flags_of_the_server_are_separate() {
        Cli::command().debug_assert();
        let tls = ["--cert=c", "--key=k", "--ca=a"];
        let parse =
            |words: &[&str]| Cli::try_parse_from(["kiam-server"].iter().chain(words).chain(&tls));
        assert!(matches!(parse(&[]), Ok(Cli::Run(_))));
        // kiam v4.2, deploy/server.daemonset.yaml, except for the name of the program.
        let probe = [
            "health",
            "--server-address=127.0.0.1:443",
            "--server-address-refresh=2s",
            "--timeout=5s",
            "--gateway-timeout-creation=1s",
        ];
        let Ok(Cli::Command(Command::Health(args))) = parse(&probe) else {
            panic!("not parsed as the health command");
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
