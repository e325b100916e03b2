//! `--redirect=iptables`: pods' connections are brought to the agent by rules of the node's
//! firewall, and who calls is told by the source address.
//!
//! ```text
//! interface   which packets are pods'
//! plan        the rules, and what brings a table to them
//! variant     legacy or nftables: the one that the node's own programs use
//! tool        runs iptables, without a shell
//! firewall    the rules put there, looked after, removed
//! ```

mod error;
mod firewall;
mod interface;
mod plan;
mod tool;
mod variant;

pub use error::IptablesError;
pub use firewall::{Firewall, FirewallMetrics, cleanup};
pub use interface::{HostInterface, InterfaceError, InterfaceWarning};
pub use plan::{CHAIN, Family, Listing, Rules, Table};
pub use tool::Variant;
