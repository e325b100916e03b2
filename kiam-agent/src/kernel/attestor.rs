//! Which cgroup made a connection: what the guard noted when the connection's SYN left.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{HashMap, MapData, MapError};
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, Attestation, Caller};
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

/// How often notes of connections that never came about are swept out.
const SWEEP: Duration = Duration::from_secs(30);

/// The kernel's word on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attested {
    /// The cgroup of the socket at the other end.
    pub cgroup: u64,
}

/// Reads the notes, each once.
pub struct Attestor {
    // The map takes no two writers at once; a lock is held for one system call or two.
    notes: Mutex<HashMap<MapData, Caller, Attestation>>,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    pub(super) fn new(notes: HashMap<MapData, Caller, Attestation>) -> Self {
        Self {
            notes: Mutex::new(notes),
        }
    }

    /// Takes out the note of the connection from `peer`. A second call for it finds none.
    #[must_use]
    pub fn take(&self, peer: SocketAddr) -> Option<Attested> {
        // A listener of the IPv6 family shows IPv4 peers as mapped addresses.
        let IpAddr::V4(address) = peer.ip().to_canonical() else {
            return None;
        };
        let caller = Caller {
            address: u32::from_ne_bytes(address.octets()),
            port: peer.port().to_be(),
            reserved: 0,
        };
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let note = notes.get(&caller, 0).ok()?;
        // Taken out by nobody else, under the lock; if the kernel has replaced it, that one goes.
        let _ = notes.remove(&caller);
        drop(notes);
        (!is_stale(note, now()?)).then_some(Attested {
            cgroup: note.cgroup,
        })
    }

    /// Sweeps out, until told to stop, the notes of connections that never came about.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
            match self.sweep() {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "attestations of connections that never came"),
                Err(error) => tracing::warn!(%error, "cannot sweep the attestations"),
            }
        }
    }

    fn sweep(&self) -> Result<usize, MapError> {
        let Some(now) = now() else { return Ok(0) };
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let stale: Vec<Caller> = notes
            .iter()
            .filter_map(|entry| match entry {
                Ok((caller, note)) if is_stale(note, now) => Some(Ok(caller)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
            .collect::<Result<_, _>>()?;
        for caller in &stale {
            // Already gone is as good.
            let _ = notes.remove(caller);
        }
        Ok(stale.len())
    }
}

fn is_stale(note: Attestation, now: u64) -> bool {
    now.saturating_sub(note.at) > ATTESTATION_LIFE_NANOS
}

/// The clock that the programs read (`bpf_ktime_get_ns`), in nanoseconds.
fn now() -> Option<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    u64::try_from(now.as_nanos()).ok()
}
