//! `--redirect=iptables`: firewall rules redirect pods' connections to the agent, and the source
//! address identifies the caller.
//!
//! ```text
//! interface   the network interfaces of pods
//! plan        the rules, and the scripts that bring a table to them
//! variant     legacy or nftables: the one that the programs of the node use
//! tool        runs iptables, without a shell
//! firewall    the rules installed, restored, removed
//! ```

mod error;
mod firewall;
mod interface;
mod plan;
mod tool;
mod variant;

pub(crate) use error::IptablesError;
pub use firewall::{Firewall, FirewallMetrics, cleanup};
pub(crate) use interface::HostInterface;
pub use plan::{CHAIN, Rules};
pub use tool::Variant;
