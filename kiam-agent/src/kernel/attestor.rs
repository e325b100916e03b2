//! Which cgroup made a connection: what the guard noted when the connection's SYN left.
//!
//! A note is taken out once. What is taken out is counted by pod or container, so that the guard
//! knows how many it has left there, and lets none have more than its share.

mod notes;
mod taken;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::maps::MapError;
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, Attestation, Caller, bucket};
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

pub(super) use notes::Notes;
pub(super) use taken::Taken;

/// How often notes of connections that never came about are swept out.
const SWEEP: Duration = Duration::from_nanos(ATTESTATION_LIFE_NANOS);
/// An agent that runs has taken a note by then. What is older when the next one starts was left
/// while there was none, and must not count against its pod any longer.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

/// The kernel's word on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attested {
    /// The cgroup of the socket at the other end.
    pub cgroup: u64,
}

/// Reads the notes, each once.
pub struct Attestor {
    notes: Notes,
    taken: Taken,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    pub(super) const fn new(notes: Notes, taken: Taken) -> Self {
        Self { notes, taken }
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
        let started = now();
        let mut stale = started.map(|started| started.saturating_sub(nanos(LEFT_BEHIND)));
        let mut pause = LEFT_BEHIND;
        loop {
            match stale.map_or(Ok(0), |stale| self.sweep(stale)) {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "attestations of connections that never came"),
                Err(error) => tracing::warn!(%error, "cannot sweep the attestations"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            stale = match pause {
                LEFT_BEHIND => started,
                _ => now().map(|now| now.saturating_sub(ATTESTATION_LIFE_NANOS)),
            };
            pause = SWEEP;
        }
    }

    /// Takes out the notes from before `limit`.
    fn sweep(&self, limit: u64) -> Result<usize, MapError> {
        let stale = self.notes.select(|note| note.at < limit)?;
        let mut swept = 0;
        for caller in stale {
            match self.notes.take(&caller)? {
                Some(note) if note.at < limit => {
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
        self.taken.count(bucket(note.share));
    }
}

fn is_stale(note: Attestation, now: u64) -> bool {
    now.saturating_sub(note.at) > ATTESTATION_LIFE_NANOS
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The clock that the programs read (`bpf_ktime_get_ns`), in nanoseconds.
fn now() -> Option<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    Some(nanos(now))
}
