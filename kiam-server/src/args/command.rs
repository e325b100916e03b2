//! What the server's program does other than to serve.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::flags::TlsFlags;
use kiam_common::server_address::ServerAddress;

use super::{Args, ClusterFlags, RoleFlags, ServiceAccountName, ServiceAccountNameError};

/// The server's command line.
pub type Cli = kiam_common::cli::Cli<Args, Command>;

/// What the program does other than to serve.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Asks a server whether it serves agents, and ends with 0 if it does: for probes
    Health(Box<HealthArgs>),

    /// Tells why a pod gets its role's credentials or does not, and what to do: which annotation,
    /// which policy, which error of STS decides
    ///
    /// Reads the Kubernetes API, and asks a running server if it is reached (in its pod, or through
    /// kubectl port-forward). The exit code is 0 if the pod gets them, 1 if not, 2 if that cannot
    /// be told.
    Explain(Box<ExplainArgs>),
}

/// What `kiam-server explain` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// What is to be explained
    #[arg(value_enum)]
    pub kind: Explained,

    /// Which
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: PodName,

    /// Whether the pod would get this role, in any spelling
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// A running server's --prometheus-listen-addr
    #[arg(long, default_value = "127.0.0.1:9620", value_name = "IP:PORT")]
    pub server: SocketAddr,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub cluster: ClusterFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub roles: RoleFlags,
}

/// What can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Explained {
    /// Why a pod gets what it gets
    Pod,
}

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl FromStr for PodName {
    type Err = ServiceAccountNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ServiceAccountName { namespace, name } = text.parse()?;
        Ok(Self { namespace, name })
    }
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
