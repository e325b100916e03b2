//! Index of pods by address, for the protocol of kiam v4, whose agents identify pods by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object::Pod;

/// The pods that claim each address, the newest last. Nearly always there is one.
#[derive(Debug, Default)]
pub(super) struct Addresses(HashMap<IpAddr, Vec<Arc<Pod>>>);

impl Addresses {
    /// Adds a pod, unless it shares the network namespace, and so the addresses, of its node.
    pub(super) fn insert(&mut self, pod: &Arc<Pod>) {
        if pod.host_network {
            return;
        }
        for address in &pod.addresses {
            let claims = self.0.entry(address.to_canonical()).or_default();
            claims.retain(|claim| claim.uid != pod.uid);
            claims.push(Arc::clone(pod));
            claims.sort_by(|a, b| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        for address in &pod.addresses {
            let address = address.to_canonical();
            if let Some(claims) = self.0.get_mut(&address) {
                claims.retain(|claim| claim.uid != pod.uid);
                if claims.is_empty() {
                    self.0.remove(&address);
                }
            }
        }
    }

    /// Returns the newest pod that claims an address: the others are terminating.
    pub(super) fn get(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.0.get(&address.to_canonical())?.last()
    }
}
