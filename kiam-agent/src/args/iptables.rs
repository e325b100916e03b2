//! Flags of `--redirect=iptables`, named as kiam named them.

use std::path::PathBuf;

use crate::iptables::HostInterface;

/// Which packets are pods', and what becomes of the rules.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "With --redirect=iptables")]
pub struct IptablesFlags {
    /// The interfaces that pods' packets come in by: one, as in cni0; all that begin so, as in
    /// cali+; or all but these, as in !eth0
    #[arg(long, value_name = "INTERFACE", required_if_eq("redirect", "iptables"))]
    pub host_interface: Option<HostInterface>,

    /// Remove the firewall rules when the agent stops: pods can then reach the node's own
    /// metadata service. Without this flag they are refused until there is an agent again
    #[arg(long, overrides_with = "no_iptables_remove")]
    pub iptables_remove: bool,

    /// Folder of the node, in memory, in which the key of IMDSv2 tokens outlives the agent, so that clients
    /// keep the tokens that they have
    #[arg(long, value_name = "DIR", default_value = "/run/kiam/key")]
    pub token_key_dir: PathBuf,

    #[arg(long, hide = true, overrides_with = "iptables_remove")]
    no_iptables_remove: bool,
}
