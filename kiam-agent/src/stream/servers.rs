//! Selection of a server among the addresses of its name, in an order that depends on the node.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;

use futures::future::BoxFuture;
use kiam_common::server_address::ServerAddress;

/// Resolver of the servers' addresses.
pub trait Resolve: Send + Sync {
    /// Returns the addresses, in any order.
    fn resolve(&self) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>>;
}

impl Resolve for ServerAddress {
    fn resolve(&self) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        Box::pin(self.lookup())
    }
}

/// Order in which a node tries the servers, and those that failed.
#[derive(Debug)]
pub(super) struct Servers {
    node: String,
    failed: BTreeSet<SocketAddr>,
}

impl Servers {
    pub(super) const fn new(node: String) -> Self {
        Self {
            node,
            failed: BTreeSet::new(),
        }
    }

    /// Returns the server to try: the first in this node's order that has not failed since the last
    /// success; if all have failed, the first.
    ///
    /// The order is by a hash of node and address (rendezvous hashing): nodes spread evenly over
    /// the servers, and adding or removing a server moves only the nodes that it gains or loses.
    pub(super) fn choose(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        self.failed.retain(|address| addresses.contains(address));
        if addresses.iter().all(|at| self.failed.contains(at)) {
            self.failed.clear();
        }
        addresses
            .iter()
            .filter(|address| !self.failed.contains(address))
            .max_by_key(|address| (self.score(**address), **address))
            .copied()
    }

    pub(super) fn failed(&mut self, address: SocketAddr) {
        self.failed.insert(address);
    }

    pub(super) fn succeeded(&mut self) {
        self.failed.clear();
    }

    fn score(&self, address: SocketAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.node, address).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        let of = |n| SocketAddr::from(([10, 0, 0, n], 9610));
        (1..=count).map(of).collect()
    }

    #[test]
    fn nodes_spread_over_the_servers_and_few_move_when_one_is_added() {
        let choices = |servers: &[SocketAddr]| -> Vec<SocketAddr> {
            (0..3000)
                .map(|n| Servers::new(format!("node-{n}")).choose(servers).unwrap())
                .collect()
        };
        let (three, four) = (choices(&addresses(3)), choices(&addresses(4)));
        let mut load = HashMap::new();
        for choice in &three {
            *load.entry(choice).or_insert(0) += 1;
        }
        assert_eq!(load.len(), 3);
        assert!(load.values().all(|n| (900..1100).contains(n)), "{load:?}");
        let new = *addresses(4).last().unwrap();
        assert!(
            three
                .iter()
                .zip(&four)
                .all(|(before, after)| before == after || *after == new)
        );
    }

    #[test]
    fn failed_servers_are_skipped_until_all_have_failed() {
        let all = addresses(3);
        let mut servers = Servers::new("node-1".into());
        let mut tried = Vec::new();
        for _ in 0..3 {
            let chosen = servers.choose(&all).unwrap();
            assert!(!tried.contains(&chosen));
            tried.push(chosen);
            servers.failed(chosen);
        }
        assert_eq!(servers.choose(&all), Some(tried[0]));
        servers.failed(tried[0]);
        assert_eq!(servers.choose(&all), Some(tried[1]));
        servers.succeeded();
        assert_eq!(servers.choose(&all), Some(tried[0]));
        assert_eq!(servers.choose(&[]), None);
    }

    #[test]
    fn failures_of_removed_addresses_are_forgotten() {
        let mut servers = Servers::new("node-1".into());
        let all = addresses(2);
        for address in &all {
            servers.failed(*address);
        }
        assert_eq!(servers.choose(&all[..1]), Some(all[0]));
        assert!(servers.failed.is_empty());
    }
}
