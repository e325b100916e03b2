//! The agent's flags: read, checked, and named as kiam named them where kiam had them.

mod command;
mod guard;
mod iptables;
mod metadata;
mod running;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::flags::{TelemetryFlags, TlsFlags};
use kiam_common::server_address::ServerAddress;

pub use command::{AttachArgs, CleanupArgs, Command, DoctorArgs, HealthArgs, StatusArgs};
pub use guard::{Guard, GuardError};
pub use iptables::IptablesFlags;
pub use metadata::MetadataFlags;
#[cfg(test)]
pub(crate) use metadata::allowed_routes;
pub use running::{RunningAgent, complete};

use crate::kernel::{self, Exemption, HostNetwork, KernelLog};

/// The longest name of a Kubernetes node, in bytes (a DNS subdomain).
const MAX_NODE_NAME_BYTES: usize = 253;
/// The longest `--pod-wait`: a request that is held longer outlives every SDK's patience.
const MAX_POD_WAIT: Duration = Duration::from_secs(10);

/// The agent's command line.
pub type Cli = kiam_common::cli::Cli<Args, Command>;

/// kiam's agent: answers the pods of one node in the metadata service's place, with the
/// credentials of their own roles. Without a command it runs
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kiam-agent", version = kiam_common::cli::version(), max_term_width = 100)]
pub struct Args {
    /// The name of the Kubernetes node that the agent runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: String,

    /// An address of the node; pods' connections to the metadata service are brought here
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: IpAddr,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub node: NodeFlags,

    /// How pods' connections to the metadata service are brought here
    #[arg(long, value_enum, default_value_t = Redirect::Ebpf, value_name = "HOW")]
    pub redirect: Redirect,

    /// What keeps pods from the metadata service by other ways than the redirected one: egress, a
    /// kernel program on what their sockets send; route, rules on what the node forwards; both, as
    /// in egress,route; or off. All that --redirect can, if not given
    #[arg(long, value_name = "GUARDS")]
    pub guard: Option<Guard>,

    /// Which decisions of the kernel programs are logged, one by one; what a pod can have refused
    /// it can have logged as often
    #[arg(long, value_enum, default_value_t = KernelLog::Off, value_name = "WHICH")]
    pub kernel_log: KernelLog,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub host_network: HostNetworkFlags,

    /// How long a request waits for a pod or its credentials that are still on their way
    #[arg(long, default_value = "800ms", value_name = "DURATION", value_parser = pod_wait)]
    pub pod_wait: Duration,

    /// Whether requests without a session token (IMDSv1) are answered
    #[arg(long, value_enum, default_value_t = ImdsV2::Optional, value_name = "WHETHER")]
    pub imds_v2: ImdsV2,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub metadata: MetadataFlags,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub iptables: IptablesFlags,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub server: ServerFlags,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub tls: TlsFlags,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub telemetry: TelemetryFlags,

    /// Show /status to other machines too: without it only over loopback, which in the agent's pod
    /// is the node's
    #[arg(long, help_heading = "Logs and metrics")]
    pub remote_status: bool,
}

/// Where on the node pods' connections are brought, and by what.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct NodeFlags {
    /// The port that pods' connections are brought to
    #[arg(long, default_value_t = 8181)]
    pub port: u16,

    /// The cgroup2 folder that all pods are below; found below /sys/fs/cgroup if not given
    #[arg(long, value_name = "FOLDER")]
    pub pods_cgroup: Option<PathBuf>,

    /// The BPF file system in which the kernel programs outlive the agent: with no agent running,
    /// pods are refused
    #[arg(long, default_value = kernel::BPFFS, value_name = "FOLDER")]
    pub bpffs: PathBuf,
}

/// What becomes of pods in the node's own network namespace, with `--redirect=ebpf`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "hostNetwork pods")]
pub struct HostNetworkFlags {
    /// What becomes of connections of hostNetwork pods to the metadata service
    #[arg(long, value_enum, default_value_t = HostNetwork::Passthrough, value_name = "WHAT")]
    pub host_network_pods: HostNetwork,

    /// hostNetwork pods that keep the node's own metadata service whatever else is said; a * at the
    /// end stands for any end of the name
    #[arg(long, value_name = "NAMESPACE/POD", value_delimiter = ',')]
    pub host_network_exempt: Vec<Exemption>,

    /// The agent's own pod, which keeps the node's own metadata service, and by which the agent checks, before it is ready,
    /// that pods' connections come here
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
}

/// Where the server is, and what the agent shows it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerFlags {
    /// The server; of several addresses behind the name one is used, and another when it fails.
    /// Its certificate must be for this name
    #[arg(long, default_value = "localhost:9610", value_name = "HOST:PORT")]
    pub server_address: ServerAddress,

    /// The service account token that proves to the server which node this is; read again at
    /// each connection
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How pods' connections to the metadata service are brought to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Redirect {
    /// By programs on the pods' cgroup, which also tell which pod is calling
    Ebpf,
    /// By rules of the node's firewall, as kiam did: for kernels that cannot do the other. Which
    /// pod is calling is told by its address
    Iptables,
}

/// Whether requests without a token of IMDSv2 are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ImdsV2 {
    /// They are, as IMDSv1's; a token that is sent along must be good
    Optional,
    /// They are refused
    Required,
}

impl Args {
    /// Where pods' connections are brought.
    #[must_use]
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.node.port)
    }

    /// What guards the node.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard.unwrap_or(Guard::all(self.redirect))
    }
}

fn node_name(text: &str) -> Result<String, &'static str> {
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    if text.is_empty() || text.len() > MAX_NODE_NAME_BYTES || !text.bytes().all(valid) {
        return Err("no node has such a name: 1 to 253 of the characters a-z 0-9 - .");
    }
    Ok(text.to_owned())
}

fn pod_wait(text: &str) -> Result<Duration, String> {
    let wait = duration::parse(text).map_err(|error| error.to_string())?;
    if wait > MAX_POD_WAIT {
        let limit = duration::format(MAX_POD_WAIT);
        return Err(format!(
            "longer than {limit}; SDKs wait about 1s for an answer"
        ));
    }
    Ok(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [&str; 11] = [
        "kiam-agent",
        "--node-name",
        "node-1",
        "--host",
        "10.0.0.1",
        "--cert",
        "c",
        "--key",
        "k",
        "--ca",
        "a",
    ];

    fn parse(more: &[&str]) -> Result<Args, String> {
        let cli = Cli::try_parse_from(REQUIRED.iter().chain(more));
        match cli.map_err(|error| error.to_string())? {
            Cli::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_needs_no_flags_of_the_agent_s() {
        let cli = Cli::try_parse_from(["kiam-agent", "cleanup"]).unwrap();
        let bpffs = PathBuf::from(kernel::BPFFS);
        let expected = Command::Cleanup(CleanupArgs { bpffs });
        assert!(matches!(cli, Cli::Command(command) if command == expected));
        let error = Cli::try_parse_from(["kiam-agent"]).unwrap_err().to_string();
        assert!(error.contains("--node-name"), "{error}");
    }

    #[test]
    fn defaults_are_as_documented() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.listen(), "10.0.0.1:8181".parse().unwrap());
        assert_eq!(args.pod_wait, Duration::from_millis(800));
        assert_eq!(args.redirect, Redirect::Ebpf);
        assert_eq!(args.guard().to_string(), "egress,route");
        assert_eq!(args.server.server_address.to_string(), "localhost:9610");
        assert_eq!(args.imds_v2, ImdsV2::Optional);
        assert_eq!(args.server.token_file, None);
        assert_eq!(args.node.pods_cgroup, None);
        assert_eq!(args.node.bpffs, PathBuf::from("/sys/fs/bpf"));
    }

    #[test]
    fn bad_values_are_refused_with_what_is_wrong() {
        for (flags, expected) in [
            (["--server-address", "kiam-server"], "no port"),
            (["--server-address", "fd00::1"], "no port"),
            (["--server-address", "kiam-server:0"], "\"0\" is no port"),
            (["--server-address", "kiam-server:http"], "is no port"),
            (["--server-address", "kiam server:1"], "neither a DNS name"),
            (["--server-address", ":9610"], "neither a DNS name"),
            (["--pod-wait", "800"], "is no duration"),
            (["--pod-wait", "1m"], "longer than 10s"),
            (["--port", "70000"], "70000"),
            (["--redirect", "magic"], "possible values: ebpf, iptables"),
            (["--guard", "on"], "is no guard; expected off"),
            (["--redirect", "iptables"], "--host-interface <INTERFACE>"),
            (["--host-interface", "eth0 -j DROP"], "names no network"),
        ] {
            let error = parse(&flags).unwrap_err();
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
        for name in ["", "Node", "node_1", &"n".repeat(254)] {
            assert!(node_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn kiam_s_firewall_flags_mean_what_they_meant() {
        let iptables = |more: &[&str]| {
            let flags = [&["--redirect=iptables", "--host-interface=!eth0"], more].concat();
            parse(&flags).unwrap().iptables
        };
        let flags = iptables(&[]);
        assert_eq!(flags.host_interface, Some("!eth0".parse().unwrap()));
        // Unlike kiam, which removed them and left the pods to the node's own service.
        assert!(!flags.iptables_remove);
        assert!(iptables(&["--iptables-remove"]).iptables_remove);
        assert!(!iptables(&["--no-iptables-remove"]).iptables_remove);
        assert!(!iptables(&["--iptables-remove", "--no-iptables-remove"]).iptables_remove);
    }

    #[test]
    fn addresses_print_as_they_are_written() {
        for text in ["kiam-server:443", "10.0.0.1:9610", "[fd00::1]:9610"] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert!(!address.host().contains('['));
        }
    }
}
