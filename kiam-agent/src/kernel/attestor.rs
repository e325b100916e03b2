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
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use notes::Notes;
pub(super) use taken::Taken;

/// A connection has come about by then. What was older when an agent began to accept connections was left
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
    /// When no connection waited to be accepted, by the programs' clock.
    none_waited: watch::Sender<Option<u64>>,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    pub(super) fn new(notes: Notes, taken: Taken) -> Self {
        let (none_waited, _) = watch::channel(None);
        Self {
            notes,
            taken,
            none_waited,
        }
    }

    /// Takes out the note of the connection from `peer`, however long that has waited to be accepted: it
    /// is of the last SYN that left from there. A second call for it finds none.
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
        Some(Attested {
            cgroup: note.cgroup,
        })
    }

    /// Told that at `since` no connection was waiting to be accepted, and those before had been
    /// accepted and their notes taken.
    pub fn none_waits(&self, since: Instant) {
        // Read in this order: an agent that is stopped in between has the earlier time.
        let Some(now) = now() else { return };
        let at = now.saturating_sub(nanos(since.elapsed()));
        self.none_waited.send_replace(Some(at));
    }

    /// Sweeps out, until told to stop, the notes of connections that never came about: each time that
    /// no connection waits to be accepted, as the note of one that does is still needed. First those
    /// that were left while there was no agent.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut none_waited = self.none_waited.subscribe();
        none_waited.mark_changed();
        let (mut sweeps, mut first) = (0_u8, None);
        loop {
            tokio::select! {
                biased;
                changed = none_waited.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let Some(at) = *none_waited.borrow_and_update() else {
                continue;
            };
            let first = *first.get_or_insert(at);
            let limit = match sweeps {
                0 => at.saturating_sub(nanos(LEFT_BEHIND)),
                // What was left in the last moment.
                1 => first,
                _ => at.saturating_sub(ATTESTATION_LIFE_NANOS),
            };
            sweeps = sweeps.saturating_add(1);
            match self.sweep(limit) {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "attestations of connections that never came"),
                Err(error) => tracing::warn!(%error, "cannot sweep the attestations"),
            }
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The clock that the programs read (`bpf_ktime_get_ns`), in nanoseconds.
fn now() -> Option<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    Some(nanos(now))
}
