//! The kernel's word: the cgroup that it noted when the connection began.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{Identify, PodRef, Refusal};
use crate::kernel::Attestor;
use crate::kernel::cgroup::{Found, Pods};

/// Cgroups whose pod is remembered; past that, the memory begins anew.
const MAX_KNOWN: usize = 4096;

/// Identifies callers by the cgroup of their socket.
#[derive(Debug)]
pub struct KernelIdentity {
    attestor: Arc<Attestor>,
    pods: Pods,
    // A cgroup's id is never given to another while the machine runs: what is known stays true.
    known: Mutex<HashMap<u64, PodRef>>,
    #[cfg(feature = "planted-address-trusted")]
    addresses: Mutex<HashMap<std::net::IpAddr, PodRef>>,
}

impl KernelIdentity {
    /// Identifies by what `attestor` reads, among `pods`.
    #[must_use]
    pub fn new(attestor: Arc<Attestor>, pods: Pods) -> Self {
        Self {
            attestor,
            pods,
            known: Mutex::default(),
            #[cfg(feature = "planted-address-trusted")]
            addresses: Mutex::default(),
        }
    }

    fn pod(&self, cgroup: u64) -> Result<PodRef, Refusal> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = known.get(&cgroup) {
            return Ok(pod.clone());
        }
        match self.pods.find(cgroup) {
            Ok(Found::Pod(pod)) => {
                if known.len() >= MAX_KNOWN {
                    known.clear();
                }
                known.insert(cgroup, pod.clone());
                Ok(pod)
            }
            Ok(Found::Gone) => Err(Refusal::Gone),
            Ok(Found::Other(path)) => {
                tracing::debug!(path = %path.display(), "a caller's cgroup is no pod's");
                Err(Refusal::NotAPod)
            }
            Err(error) => {
                tracing::error!(%error, "cannot tell a caller's pod");
                Err(Refusal::Unknown)
            }
        }
    }
}

impl Identify for KernelIdentity {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal> {
        let cgroup = self.attestor.take(peer).ok_or(Refusal::Unattested)?.cgroup;
        let pod = self.pod(cgroup)?;
        #[cfg(feature = "planted-address-trusted")]
        let pod = {
            let mut addresses = self
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            addresses.entry(peer.ip()).or_insert(pod).clone()
        };
        tracing::debug!(%peer, cgroup, pod.uid = %pod, "the kernel knows who is calling");
        Ok(pod)
    }

    fn none_waits(&self, since: Instant) {
        self.attestor.none_waits(since);
    }
}
