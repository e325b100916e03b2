//! What the agent's program does other than to run, and what it is told for that.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::server_address::ServerAddress;

use crate::kernel;

/// Where the chart has the agent's operator's port.
const OPERATOR: &str = "127.0.0.1:9620";

/// What the agent does other than to run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Removes from the kernel what agents leave there to refuse pods when they are gone. From then
    /// on pods reach the node's own metadata service. Stop the agent first
    Cleanup(CleanupArgs),

    /// Closes what pods had open with the metadata service before the node was guarded, for which it enters their network
    /// namespaces. Their clients connect anew, to the agent, in place of waiting for answers that do not come
    CloseConnections(CloseConnectionsArgs),

    /// Tells whether this node can be guarded, and what to do where it cannot. It changes nothing
    Doctor(DoctorArgs),

    /// Shows the running agent's pods: which role each has, or why it gets nothing
    Status(StatusArgs),

    /// Asks the running agent whether it serves, for probes
    Health(HealthArgs),
}

/// What `kiam-agent close-connections` is told.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CloseConnectionsArgs {
    /// The folder in which the container runtime keeps pods' network namespaces
    #[arg(long, default_value = "/run/netns", value_name = "FOLDER")]
    pub network_namespaces: PathBuf,

    /// The BPF file system in which the kernel programs outlive the agent
    #[arg(long, default_value = kernel::BPFFS, value_name = "FOLDER")]
    pub bpffs: PathBuf,
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

    /// The port that pods' connections are brought to
    #[arg(long, default_value_t = 8181)]
    pub port: u16,

    /// The cgroup2 folder that all pods are below; found below /sys/fs/cgroup if not given
    #[arg(long, value_name = "FOLDER")]
    pub pods_cgroup: Option<PathBuf>,

    /// The BPF file system in which the kernel programs outlive the agent
    #[arg(long, default_value = kernel::BPFFS, value_name = "FOLDER")]
    pub bpffs: PathBuf,

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
