//! Command line of the agent. Flags that kiam had keep their names.

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

pub use command::Command;
pub(crate) use command::{AttachArgs, CleanupArgs, DoctorArgs, HealthArgs, StatusArgs};
pub(crate) use guard::Guard;
pub(crate) use iptables::IptablesFlags;
pub(crate) use metadata::MetadataFlags;
#[cfg(test)]
pub(crate) use metadata::allowed_routes;
pub use running::{RunningAgent, complete};

use crate::kernel::{self, Exemption, HostNetwork, KernelLog};

/// Maximum length of a node name, in bytes (a DNS subdomain).
const MAX_NODE_NAME_BYTES: usize = 253;
/// Maximum of `--pod-wait`: no SDK waits longer for an answer.
const MAX_POD_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(crate) type Cli = kiam_common::cli::Cli<Args, Command>;

/// Serves the pods of one node in place of the metadata service, each with the credentials of its
/// role
///
/// Runs the agent if no command is given.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kiam-agent", version = kiam_common::cli::version(), max_term_width = 100)]
pub struct Args {
    /// Name of the Kubernetes node
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub(crate) node_name: String,

    /// IPv4 address of the node that pods can reach
    ///
    /// Pods' connections to the metadata service are redirected to this address and --port. With
    /// --redirect=iptables it may be an IPv6 address.
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    pub host: IpAddr,

    #[command(flatten)]
    pub(crate) node: NodeFlags,

    /// Mechanism that redirects pods' connections to the metadata service
    #[arg(long, value_enum, default_value_t = Redirect::Ebpf, value_name = "MODE")]
    pub redirect: Redirect,

    /// Guards on other paths to the metadata service: egress, route, both (egress,route), or off
    ///
    /// egress: a kernel program drops what pods' sockets send to the metadata service. route:
    /// routing rules reject what the node forwards there. Default: all that --redirect supports.
    #[arg(long, value_name = "GUARDS")]
    pub(crate) guard: Option<Guard>,

    /// Decisions of the kernel programs to log, one by one
    ///
    /// A pod can fill the log: each connection or packet of its own that is refused is a line.
    #[arg(long, value_enum, default_value_t = KernelLog::Off, value_name = "DECISIONS")]
    pub(crate) kernel_log: KernelLog,

    #[command(flatten)]
    pub(crate) host_network: HostNetworkFlags,

    /// Maximum time that a request waits for a pod or credentials that have not arrived yet
    #[arg(
        long,
        default_value = "800ms",
        value_name = "DURATION",
        value_parser = pod_wait,
        help_heading = "Metadata service"
    )]
    pub pod_wait: Duration,

    /// Treatment of requests without a session token (IMDSv1)
    #[arg(
        long,
        value_enum,
        default_value_t = ImdsV2::Optional,
        value_name = "MODE",
        help_heading = "Metadata service"
    )]
    pub imds_v2: ImdsV2,

    #[command(flatten)]
    pub(crate) metadata: MetadataFlags,

    #[command(flatten)]
    pub(crate) iptables: IptablesFlags,

    #[command(flatten)]
    pub(crate) server: ServerFlags,

    #[command(flatten)]
    pub(crate) tls: TlsFlags,

    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "a doc comment here would replace the group's heading"
    )]
    pub telemetry: TelemetryFlags,

    /// Serve /status to other machines as well
    ///
    /// Without this flag /status is served over loopback only, which in the agent's pod is the
    /// node's.
    #[arg(long, help_heading = "Logs and metrics")]
    pub(crate) remote_status: bool,
}

/// Port of the agent, and where the node's cgroups and BPF file system are.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct NodeFlags {
    /// Port that pods' connections are redirected to
    #[arg(long, default_value_t = 8181)]
    pub(crate) port: u16,

    /// cgroup2 directory that contains the cgroups of all pods
    ///
    /// Default: found below /sys/fs/cgroup.
    #[arg(long, value_name = "DIR")]
    pub(crate) pods_cgroup: Option<PathBuf>,

    /// BPF file system in which the kernel programs are pinned
    ///
    /// Pinned programs outlive the agent: while no agent runs, pods' connections are refused.
    #[arg(long, default_value = kernel::BPFFS, value_name = "DIR")]
    pub(crate) bpffs: PathBuf,
}

/// Treatment of pods in the node's network namespace, with `--redirect=ebpf`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "hostNetwork pods")]
pub(crate) struct HostNetworkFlags {
    /// Treatment of hostNetwork pods' connections to the metadata service
    #[arg(long, value_enum, default_value_t = HostNetwork::Passthrough, value_name = "POLICY")]
    pub(crate) host_network_pods: HostNetwork,

    /// hostNetwork pods that always keep the node's metadata service
    ///
    /// A * at the end of the name matches any ending.
    #[arg(long, value_name = "NAMESPACE/POD", value_delimiter = ',')]
    pub(crate) host_network_exempt: Vec<Exemption>,

    /// UID of the agent's own pod
    ///
    /// With it the agent checks, before it is ready, that pods' connections reach it. The pod
    /// itself keeps the node's metadata service.
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub(crate) pod_uid: Option<String>,
}

/// Address of the server, and the agent's proof of which node it is on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerFlags {
    /// Address of the server; its certificate must be valid for this name
    ///
    /// If the name has several addresses, the agent uses one, and another when that fails.
    #[arg(long, default_value = "localhost:9610", value_name = "HOST:PORT")]
    pub(crate) server_address: ServerAddress,

    /// Service account token that proves to the server which node this is
    ///
    /// Read again for each connection.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// Mechanism that redirects pods' connections to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Redirect {
    /// Programs on the pods' cgroup, which also identify the calling pod
    Ebpf,
    /// Firewall rules, as in kiam; for kernels that do not support ebpf. The calling pod is
    /// identified by its address
    Iptables,
}

/// Treatment of requests without a session token of IMDSv2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ImdsV2 {
    /// Answer them as IMDSv1 requests. A token that is sent must be valid
    Optional,
    /// Refuse them
    Required,
}

impl Args {
    /// Returns the address that pods' connections are redirected to.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.node.port)
    }

    /// Returns the guards in effect.
    pub(crate) fn guard(&self) -> Guard {
        self.guard.unwrap_or(Guard::all(self.redirect))
    }
}

fn node_name(text: &str) -> Result<String, &'static str> {
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    if text.is_empty() || text.len() > MAX_NODE_NAME_BYTES || !text.bytes().all(valid) {
        return Err("not a node name: expected 1 to 253 of the characters a-z 0-9 - .");
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
    fn a_command_needs_no_flags_of_the_agent() {
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
    fn invalid_values_are_rejected_with_a_reason() {
        for (flags, expected) in [
            (["--server-address", "kiam-server"], "no port"),
            (["--server-address", "fd00::1"], "no port"),
            (["--server-address", "kiam-server:0"], "invalid port \"0\""),
            (["--server-address", "kiam-server:http"], "invalid port"),
            (["--server-address", "kiam server:1"], "invalid host"),
            (["--server-address", ":9610"], "invalid host"),
            (["--pod-wait", "800"], "invalid duration"),
            (["--pod-wait", "1m"], "longer than 10s"),
            (["--port", "70000"], "70000"),
            (["--redirect", "magic"], "possible values: ebpf, iptables"),
            (["--guard", "on"], "not a guard: expected off"),
            (["--redirect", "iptables"], "--host-interface <INTERFACE>"),
            (
                ["--host-interface", "eth0 -j DROP"],
                "not the name of a network",
            ),
        ] {
            let error = parse(&flags).unwrap_err();
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
        for name in ["", "Node", "node_1", &"n".repeat(254)] {
            assert!(node_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn firewall_flags_of_kiam_keep_their_meaning() {
        let iptables = |more: &[&str]| {
            let flags = [&["--redirect=iptables", "--host-interface=!eth0"], more].concat();
            parse(&flags).unwrap().iptables
        };
        let flags = iptables(&[]);
        assert_eq!(flags.host_interface, Some("!eth0".parse().unwrap()));
        // Unlike kiam, which removed the rules and left pods to the node's metadata service.
        assert!(!flags.iptables_remove);
        assert!(iptables(&["--iptables-remove"]).iptables_remove);
        assert!(!iptables(&["--no-iptables-remove"]).iptables_remove);
        assert!(!iptables(&["--iptables-remove", "--no-iptables-remove"]).iptables_remove);
    }

    #[test]
    fn addresses_are_printed_as_they_are_written() {
        for text in ["kiam-server:443", "10.0.0.1:9610", "[fd00::1]:9610"] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert!(!address.host().contains('['));
        }
    }
}
