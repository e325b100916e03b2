//! What the agent's program does other than to run, and what it is told for that.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::server_address::ServerAddress;

use super::{NodeFlags, Redirect};
use crate::kernel::{self, HostNetwork};

/// Where the chart has the agent's operator's port.
const OPERATOR: &str = "127.0.0.1:9620";

/// What the agent does other than to run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Attaches the kernel programs where no agent has, so that pods are refused until one runs, and closes what pods had open
    /// with the metadata service before, for which it enters their network namespaces. For an init container of the agent's
    Attach(AttachArgs),

    /// Removes from the kernel what agents leave there to refuse pods when they are gone. From then
    /// on pods reach the node's own metadata service. Stop the agent first
    Cleanup(CleanupArgs),

    /// Tells whether this node can be guarded, and what to do where it cannot. It changes nothing. In an agent's
    /// container it checks what that agent was told, where it is not told otherwise
    Doctor(DoctorArgs),

    /// Shows the running agent's pods: which role each has, or why it gets nothing
    Status(StatusArgs),

    /// Asks the running agent whether it serves, for probes
    Health(HealthArgs),
}

/// What `kiam-agent attach` is told: what the agent will be.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct AttachArgs {
    /// An address of the node; pods' connections to the metadata service are brought here
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: IpAddr,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub node: NodeFlags,

    /// What becomes of connections of hostNetwork pods to the metadata service
    #[arg(long, value_enum, default_value_t = HostNetwork::Passthrough, value_name = "WHAT")]
    pub host_network_pods: HostNetwork,

    /// The folder in which the container runtime keeps pods' network namespaces
    #[arg(long, default_value = "/run/netns", value_name = "FOLDER")]
    pub network_namespaces: PathBuf,
}

/// What `kiam-agent status` is told.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct StatusArgs {
    /// The running agent's --prometheus-listen-addr
    #[arg(long, default_value = OPERATOR, value_name = "IP:PORT")]
    pub address: SocketAddr,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What `kiam-agent health` is told.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct HealthArgs {
    /// The running agent's --prometheus-listen-addr
    #[arg(long, default_value = OPERATOR, value_name = "IP:PORT")]
    pub address: SocketAddr,

    /// Ask whether it knows the node's pods, too
    #[arg(long)]
    pub ready: bool,

    /// How long it may take to answer
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration::parse)]
    pub timeout: Duration,
}

/// What `kiam-agent doctor` is told: what the agent is.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct DoctorArgs {
    /// The address of the node that pods' connections are brought to
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: Option<IpAddr>,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub node: NodeFlags,

    /// How pods' connections are brought to the agent: with iptables the kernel programs are not checked
    #[arg(long, value_enum, default_value_t = Redirect::Ebpf, value_name = "HOW")]
    pub redirect: Redirect,

    /// Capabilities that the agent has beside its own, as agent.extraCapabilities of the chart gives them: the kernel
    /// programs are loaded with these and the agent's alone
    #[arg(
        long = "extra-capability",
        env = "EXTRA_CAPABILITIES",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = capability
    )]
    pub extra_capabilities: Vec<caps::Capability>,

    /// The server; not checked if not given
    #[arg(long, value_name = "HOST:PORT")]
    pub server_address: Option<ServerAddress>,

    /// The agent's certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// The certificate authorities of the server's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What `kiam-agent cleanup` is told.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CleanupArgs {
    /// The BPF file system that the agent was given
    #[arg(long, default_value = kernel::BPFFS, value_name = "FOLDER")]
    pub bpffs: PathBuf,
}

/// Parses a capability, named as in a pod's securityContext: `PERFMON`, or `CAP_PERFMON`.
fn capability(name: &str) -> Result<caps::Capability, String> {
    let full = format!("CAP_{}", name.trim().trim_start_matches("CAP_"));
    full.parse().map_err(|_unknown: caps::errors::CapsError| {
        format!("there is no capability {name}; see capabilities(7)")
    })
}
