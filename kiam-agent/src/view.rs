//! The node's view: its pods, what was decided about each, and their credentials.
//!
//! A projection of the server's stream. One [`Projection`] writes it; any number of [`View`]s
//! read immutable snapshots without a lock, and are woken when there is a new one.
//!
//! ```text
//! update       what a stream says, in the agent's own terms, checked
//! projection   the writer: folds updates into the next snapshot, over breaks of the stream
//! pod          one pod of a snapshot, with its credentials joined to it
//! gone         pods that were known
//! credentials  credentials as documents, written once
//! ```
//!
//! Knows neither tonic nor hyper.

mod credentials;
mod gone;
mod pod;
mod projection;
mod update;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use credentials::{CredentialsError, Issued};
use gone::Gone;
pub use pod::{Grant, Outcome, Pod};
pub use projection::{Projection, Refused};
pub use update::{Decision, Failure, PodFacts, Uid, Update};

/// What is known of the node at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pods: HashMap<Uid, Arc<Pod>>,
    static_pods: HashMap<Box<str>, Uid>,
    addresses: HashMap<IpAddr, Claim>,
    gone: Arc<Gone>,
    complete: bool,
}

impl Snapshot {
    /// The pod with a `metadata.uid`.
    #[must_use]
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// The static pod whose cgroup is named by this hash. A hash that more than one pod claims
    /// names none.
    #[must_use]
    pub fn by_static_hash(&self, hash: &str) -> Option<&Arc<Pod>> {
        self.static_pods
            .get(hash)
            .and_then(|uid| self.pods.get(uid))
    }

    /// The pod that has an address. Of two that claim it none has it: which one calls cannot be
    /// told, and the wrong one's role must not be given out.
    ///
    /// # Errors
    /// When more than one pod claims it.
    pub fn by_address(&self, address: IpAddr) -> Result<Option<&Arc<Pod>>, Claimed> {
        match self.addresses.get(&address) {
            Some(Claim::One(uid)) => Ok(self.pods.get(uid)),
            Some(Claim::Many) => Err(Claimed { address }),
            None => Ok(None),
        }
    }

    /// The name of a pod that was known and has gone.
    #[must_use]
    pub fn gone(&self, uid: &str) -> Option<&str> {
        self.gone.name(uid)
    }

    /// All pods, in no order.
    #[must_use]
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Whether a server has ever told all that it knew of the node. Before, a pod that is not
    /// here may well exist.
    #[must_use]
    pub const fn complete(&self) -> bool {
        self.complete
    }
}

/// Who says that an address is theirs.
#[derive(Debug)]
enum Claim {
    One(Uid),
    Many,
}

impl Claim {
    /// One more claims it; a pod may say so twice.
    fn add(&mut self, other: &Uid) {
        if !matches!(self, Self::One(uid) if uid == other) {
            *self = Self::Many;
        }
    }
}

/// An address that is more than one pod's, as long as one is not quite gone yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than one pod of this node claims the address {address}")]
pub struct Claimed {
    address: IpAddr,
}

/// Reads the newest snapshot.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<()>,
}

/// Wakes when there is a newer snapshot.
#[derive(Debug)]
pub struct Changes(watch::Receiver<()>);

impl View {
    /// The newest snapshot. Not to be held across an await.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Snapshots from now on: one that is published after this call is not missed.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Changes(changes)
    }
}

impl Changes {
    /// Waits for the next snapshot; false when there will be none, as the writer is gone.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
