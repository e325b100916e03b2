//! Commands of the agent's program, and their flags.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::server_address::ServerAddress;

use super::{NodeFlags, Redirect};
use crate::kernel::{self, HostNetwork};

/// Admin port of the agent in the chart.
const ADMIN: &str = "127.0.0.1:9620";

/// Commands; without one, the program runs as the agent.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Attach the kernel programs before the agent runs, and close older connections
    ///
    /// For an init container of the agent. Until an agent runs, pods are refused. Connections that
    /// pods have open to the metadata service are closed; this enters their network namespaces.
    Attach(AttachArgs),

    /// Remove from the kernel what agents leave there to refuse pods
    ///
    /// Afterwards pods reach the node's metadata service. Stop the agent first.
    Cleanup(CleanupArgs),

    /// Check whether this node can be guarded, and report what to fix
    ///
    /// Changes nothing. In the agent's container, flags that are not given are those of the running
    /// agent.
    Doctor(DoctorArgs),

    /// Show the pods of the running agent: the role of each, or why it gets nothing
    Status(StatusArgs),

    /// Check whether the running agent serves; for probes
    Health(HealthArgs),

    /// List the metrics that an agent can have, as JSON
    Metrics,
}

/// Flags of `kiam-agent attach`: those of the agent that will run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct AttachArgs {
    /// IPv4 address of the node that the agent will listen on
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: IpAddr,

    #[command(flatten)]
    pub(crate) node: NodeFlags,

    /// Treatment of hostNetwork pods' connections to the metadata service
    #[arg(long, value_enum, default_value_t = HostNetwork::Passthrough, value_name = "POLICY")]
    pub(crate) host_network_pods: HostNetwork,

    /// Directory in which the container runtime keeps pods' network namespaces
    #[arg(long, default_value = "/run/netns", value_name = "DIR")]
    pub(crate) network_namespaces: PathBuf,
}

/// Flags of `kiam-agent status`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct StatusArgs {
    /// Admin port of the running agent (its --prometheus-listen-addr)
    #[arg(long, default_value = ADMIN, value_name = "IP:PORT")]
    pub address: SocketAddr,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Flags of `kiam-agent health`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct HealthArgs {
    /// Admin port of the running agent (its --prometheus-listen-addr)
    #[arg(long, default_value = ADMIN, value_name = "IP:PORT")]
    pub address: SocketAddr,

    /// Check readiness too: whether the agent knows the node's pods
    #[arg(long)]
    pub ready: bool,

    /// Maximum time to wait for an answer
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration::parse)]
    pub timeout: Duration,
}

/// Flags of `kiam-agent doctor`: those of the agent that is checked.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct DoctorArgs {
    /// IPv4 address of the node that pods' connections are redirected to
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: Option<IpAddr>,

    #[command(flatten)]
    pub(crate) node: NodeFlags,

    /// Mechanism that redirects pods' connections
    ///
    /// With iptables the kernel programs are not checked.
    #[arg(long, value_enum, default_value_t = Redirect::Ebpf, value_name = "MODE")]
    pub redirect: Redirect,

    /// Capabilities that the agent has beyond the required ones
    ///
    /// As agent.extraCapabilities in the chart. The kernel programs are loaded with these and the
    /// required capabilities only.
    #[arg(
        long = "extra-capability",
        env = "EXTRA_CAPABILITIES",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = capability
    )]
    pub(crate) extra_capabilities: Vec<caps::Capability>,

    /// Address of the server; not checked if not given
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server_address: Option<ServerAddress>,

    /// Certificate chain of the agent, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Certificate authorities that must have issued the server's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Flags of `kiam-agent cleanup`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CleanupArgs {
    /// BPF file system of the agent
    #[arg(long, default_value = kernel::BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
}

/// Parses a capability as named in a pod's securityContext (`PERFMON`) or as `CAP_PERFMON`.
fn capability(name: &str) -> Result<caps::Capability, String> {
    let full = format!("CAP_{}", name.trim().trim_start_matches("CAP_"));
    full.parse().map_err(|_unknown: caps::errors::CapsError| {
        format!("unknown capability {name}; see capabilities(7)")
    })
}
