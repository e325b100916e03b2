//! Attestor: the cgroup that made a connection, as the guard recorded it when the SYN left.
//!
//! Each attestation is consumed once. Consumption is counted per quota cgroup, so that the guard
//! knows how many are pending and enforces the quota.

mod attestations;
mod consumed;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::maps::MapError;
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, Attestation, Peer, bucket};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use attestations::Attestations;
pub(super) use consumed::ConsumedCounts;

/// A connection is established within this time. Older attestations from before the agent accepted
/// connections have no connection, and must not count against their pod.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(1);

/// Attestation of a connection by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attested {
    /// Cgroup of the socket at the other end.
    pub cgroup: u64,
}

/// Consumes attestations.
pub struct Attestor {
    attestations: Attestations,
    consumed: ConsumedCounts,
    /// Time at which the accept queue was last empty, by the clock of the programs.
    queue_empty: watch::Sender<Option<u64>>,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    pub(super) fn new(attestations: Attestations, consumed: ConsumedCounts) -> Self {
        let (queue_empty, _) = watch::channel(None);
        Self {
            attestations,
            consumed,
            queue_empty,
        }
    }

    /// Consumes the attestation of the connection from `peer`: that of the last SYN from there,
    /// however long the connection waited to be accepted. A second call for it returns `None`.
    pub fn consume(&self, peer: SocketAddr) -> Option<Attested> {
        // A listener of the IPv6 family reports IPv4 peers as mapped addresses.
        let IpAddr::V4(address) = peer.ip().to_canonical() else {
            return None;
        };
        let peer = Peer {
            address: u32::from_ne_bytes(address.octets()),
            port: peer.port().to_be(),
            reserved: 0,
        };
        let attestation = match self.attestations.take(&peer) {
            Ok(attestation) => attestation?,
            Err(error) => {
                tracing::error!(%error, "cannot read the attestation of a connection");
                return None;
            }
        };
        self.count(attestation);
        Some(Attested {
            cgroup: attestation.cgroup,
        })
    }

    /// Reports that at `since` the accept queue was empty: earlier connections had been accepted,
    /// and their attestations consumed.
    pub fn accept_queue_empty(&self, since: Instant) {
        // In this order: if the agent is suspended in between, the result is the earlier time.
        let Some(now) = now() else { return };
        let at = now.saturating_sub(nanos(since.elapsed()));
        self.queue_empty.send_replace(Some(at));
    }

    /// Sweeps attestations of connections that were never established, until `stop`. Runs each time
    /// that the accept queue was empty, since a waiting connection still needs its attestation. The
    /// first sweep removes those from before this agent.
    pub async fn run(&self, stop: CancellationToken) {
        let mut queue_empty = self.queue_empty.subscribe();
        queue_empty.mark_changed();
        let (mut sweeps, mut first) = (0_u8, None);
        loop {
            tokio::select! {
                biased;
                changed = queue_empty.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let Some(at) = *queue_empty.borrow_and_update() else {
                continue;
            };
            let first = *first.get_or_insert(at);
            let limit = match sweeps {
                0 => at.saturating_sub(nanos(ESTABLISHED_WITHIN)),
                // Attestations from the last moment before this agent.
                1 => first,
                _ => at.saturating_sub(ATTESTATION_LIFE_NANOS),
            };
            sweeps = sweeps.saturating_add(1);
            match self.sweep(limit) {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "attestations without a connection"),
                Err(error) => tracing::warn!(%error, "cannot sweep the attestations"),
            }
        }
    }

    /// Consumes the attestations from before `limit`.
    fn sweep(&self, limit: u64) -> Result<usize, MapError> {
        let stale = self
            .attestations
            .select(|attestation| attestation.at < limit)?;
        let mut swept = 0;
        for peer in stale {
            match self.attestations.take(&peer)? {
                Some(attestation) if attestation.at < limit => {
                    self.count(attestation);
                    swept += 1;
                }
                // A new connection from there has just begun.
                Some(attestation) => self.attestations.put_back(&peer, attestation)?,
                None => {}
            }
        }
        Ok(swept)
    }

    fn count(&self, attestation: Attestation) {
        self.consumed.count(bucket(attestation.quota_cgroup));
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the time of the clock that the programs use (`bpf_ktime_get_ns`), in nanoseconds.
fn now() -> Option<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    Some(nanos(now))
}
