//! Pods by their address, for callers that know nothing else of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object::Pod;

/// The pods that claim an address, the newest last. Nearly always it is one.
#[derive(Debug, Default)]
pub(super) struct Addresses(HashMap<IpAddr, Vec<Arc<Pod>>>);

impl Addresses {
    /// The addresses of a pod in its node's network are the node's, and identify nothing.
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

    /// Of several pods that claim it, the newest has it: the others are on their way out.
    pub(super) fn get(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.0.get(&address.to_canonical())?.last()
    }
}
