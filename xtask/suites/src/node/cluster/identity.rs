//! Identity of a machine as a node of the cluster.

use std::net::Ipv4Addr;

/// A node's name and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) number: u8,
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
}

impl Identity {
    pub(super) fn new(number: u8) -> Self {
        Self {
            number,
            name: format!("node{number}"),
            address: Ipv4Addr::new(10, 0, 210, number),
        }
    }
}
