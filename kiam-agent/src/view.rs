//! The node's view: its pods, what was decided about each, and their credentials.
//!
//! A projection of the server's stream. One [`Projection`] writes it; any number of [`View`]s
//! read immutable snapshots without a lock, and are woken when there is a new one.
//!
//! ```text
//! update       what a stream says, in the agent's own terms, checked
//! projection   the writer: folds updates into the next snapshot, over breaks of the stream
//! pod          one pod of a snapshot, with its credentials joined to it
//! credentials  credentials as documents, written once
//! ```
//!
//! Knows neither tonic nor hyper.

mod credentials;
mod pod;
mod projection;
mod update;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use credentials::{CredentialsError, Issued};
pub use pod::{Grant, Outcome, Pod};
pub use projection::{Projection, Refused};
pub use update::{Decision, Failure, PodFacts, Uid, Update};

/// What is known of the node at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pods: HashMap<Uid, Arc<Pod>>,
    static_pods: HashMap<Box<str>, Uid>,
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
