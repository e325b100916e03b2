//! Which cgroup made a connection: what the guard noted when the connection's SYN left.
//!
//! A note is taken out once. What is taken out is counted by pod or container, so that the guard
//! knows how many it has left there, and lets none have more than its share.

mod notes;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{Array, MapData, MapError};
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, Attestation, BUCKETS, Caller, bucket};
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

pub(super) use notes::Notes;

/// How often notes of connections that never came about are swept out.
const SWEEP: Duration = Duration::from_nanos(ATTESTATION_LIFE_NANOS);

/// The kernel's word on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attested {
    /// The cgroup of the socket at the other end.
    pub cgroup: u64,
}

/// Reads the notes, each once.
pub struct Attestor {
    notes: Notes,
    taken: Mutex<Taken>,
}

/// How many notes were taken out, by bucket: as the guard reads it, and a copy to count from.
struct Taken {
    map: Array<MapData, u64>,
    counts: Vec<u64>,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    /// Goes on from where an earlier reader of these maps was.
    pub(super) fn new(notes: Notes, taken: Array<MapData, u64>) -> Result<Self, MapError> {
        let counts = (0..BUCKETS)
            .map(|bucket| taken.get(&bucket, 0))
            .collect::<Result<_, _>>()?;
        let taken = Mutex::new(Taken { map: taken, counts });
        Ok(Self { notes, taken })
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
        let note = match self.notes.take(&caller) {
            Ok(note) => note?,
            Err(error) => {
                tracing::error!(%error, "cannot read who made a connection");
                return None;
            }
        };
        self.count(note);
        (!is_stale(note, now()?)).then_some(Attested {
            cgroup: note.cgroup,
        })
    }

    /// Sweeps out, until told to stop, the notes of connections that never came about: first
    /// those that were left while there was no agent.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            match self.sweep() {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "attestations of connections that never came"),
                Err(error) => tracing::warn!(%error, "cannot sweep the attestations"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
        }
    }

    fn sweep(&self) -> Result<usize, MapError> {
        let Some(now) = now() else { return Ok(0) };
        let stale = self.notes.select(|note| is_stale(note, now))?;
        let mut swept = 0;
        for caller in stale {
            match self.notes.take(&caller)? {
                Some(note) if is_stale(note, now) => {
                    self.count(note);
                    swept += 1;
                }
                // A new connection has just begun from there.
                Some(note) => self.notes.put_back(&caller, note)?,
                None => {}
            }
        }
        Ok(swept)
    }

    fn count(&self, note: Attestation) {
        let bucket = bucket(note.share);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Taken { map, counts } = &mut *taken;
        let Some(count) = counts.get_mut(bucket as usize) else {
            return;
        };
        *count = count.wrapping_add(1);
        // Under the lock: the guard sees no count go back.
        if let Err(error) = map.set(bucket, *count, 0) {
            tracing::error!(%error, "cannot count an attestation as taken");
        }
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
