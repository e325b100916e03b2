//! Flags of `--redirect=iptables`. Those of kiam keep their names.

use std::path::PathBuf;

use crate::iptables::HostInterface;

/// Interfaces of pods, and the lifetime of the firewall rules and the token key.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "With --redirect=iptables")]
pub(crate) struct IptablesFlags {
    /// Network interfaces that pods' packets arrive on: cni0, cali+, or !eth0
    ///
    /// cali+ matches all names that begin with cali; !eth0 matches all but eth0.
    #[arg(long, value_name = "INTERFACE", required_if_eq("redirect", "iptables"))]
    pub(crate) host_interface: Option<HostInterface>,

    /// Remove the firewall rules when the agent stops
    ///
    /// Pods can then reach the node's metadata service. Without this flag they are refused until an
    /// agent runs again.
    #[arg(long, overrides_with = "no_iptables_remove")]
    pub(crate) iptables_remove: bool,

    /// Directory for the key of IMDSv2 tokens: on the node, in memory (tmpfs)
    ///
    /// The key outlives the agent, so that tokens of clients stay valid.
    #[arg(long, value_name = "DIR", default_value = "/run/kiam/key")]
    pub(crate) token_key_dir: PathBuf,

    #[arg(long, hide = true, overrides_with = "iptables_remove")]
    no_iptables_remove: bool,
}
