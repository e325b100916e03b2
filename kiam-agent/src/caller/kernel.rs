//! Identification by the kernel: the cgroup that was attested when the connection was made.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{Identify, PodRef, Unidentified};
use crate::kernel::Attestor;
use crate::kernel::cgroup::{Found, Pods};

/// Maximum number of remembered cgroups; beyond it, the cache is cleared.
const MAX_KNOWN: usize = 4096;

/// Identifies callers by the cgroup of their socket.
#[derive(Debug)]
pub struct KernelIdentity {
    attestor: Arc<Attestor>,
    pods: Pods,
    // Cgroup ids are not reused until the machine reboots, so entries stay valid.
    known: Mutex<HashMap<u64, PodRef>>,
}

impl KernelIdentity {
    /// Creates an identification from attestations and the pods' cgroups.
    pub fn new(attestor: Arc<Attestor>, pods: Pods) -> Self {
        Self {
            attestor,
            pods,
            known: Mutex::default(),
        }
    }

    fn pod(&self, cgroup: u64) -> Result<PodRef, Unidentified> {
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
            Ok(Found::Gone) => Err(Unidentified::Gone),
            Ok(Found::Other(path)) => {
                tracing::debug!(path = %path.display(), "the cgroup of a caller is not below a pod's");
                Err(Unidentified::NotAPod)
            }
            Err(error) => {
                tracing::error!(%error, "cannot identify the pod of a caller");
                Err(Unidentified::Unknown)
            }
        }
    }
}

impl Identify for KernelIdentity {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
        let cgroup = self
            .attestor
            .consume(peer)
            .ok_or(Unidentified::Unattested)?
            .cgroup;
        let pod = self.pod(cgroup)?;
        tracing::debug!(%peer, cgroup, pod.uid = %pod, "the kernel identified a caller");
        Ok(pod)
    }

    fn accept_queue_empty(&self, since: Instant) {
        self.attestor.accept_queue_empty(since);
    }
}
