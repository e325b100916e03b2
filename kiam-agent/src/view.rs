//! View of the node: its pods, the outcome for each, and their credentials.
//!
//! The view is a projection of the server's stream. One [`Projection`] writes it; any number of
//! [`View`]s read immutable snapshots without a lock, and are woken by a new one.
//!
//! ```text
//! update       messages of a stream, checked
//! projection   the writer: folds updates into the next snapshot, across streams
//! pod          a pod of a snapshot, with its credentials
//! gone         pods that were removed
//! credentials  credentials as documents, written once
//! ```
//!
//! Independent of tonic and hyper.

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
use kiam_common::pod_uid::PodUid;
use tokio::sync::watch;

pub use credentials::Issued;
use gone::Gone;
pub use kiam_common::outcome::Outcome;
pub(crate) use pod::Grant;
pub use pod::Pod;
pub use projection::Projection;
pub use update::{Failure, GrantedRole, PodFacts, Update};

/// State of the node at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pods: HashMap<PodUid, Arc<Pod>>,
    static_pods: HashMap<Box<str>, PodUid>,
    addresses: HashMap<IpAddr, Claim>,
    gone: Arc<Gone>,
    complete: bool,
}

impl Snapshot {
    /// Returns the pod with this UID.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// Returns the static pod whose cgroup is named by this hash; `None` if more than one pod
    /// claims the hash.
    pub(crate) fn by_static_hash(&self, hash: &str) -> Option<&Arc<Pod>> {
        self.static_pods
            .get(hash)
            .and_then(|uid| self.pods.get(uid))
    }

    /// Returns the pod with this address. An address that more than one pod claims is an error: the
    /// caller is ambiguous, and must not get the role of another pod.
    pub(crate) fn by_address(&self, address: IpAddr) -> Result<Option<&Arc<Pod>>, Claimed> {
        match self.addresses.get(&address) {
            Some(Claim::One(uid)) => Ok(self.pods.get(uid)),
            Some(Claim::Many) => Err(Claimed { address }),
            None => Ok(None),
        }
    }

    /// Returns the name of a pod that was removed.
    pub fn gone(&self, uid: &str) -> Option<&str> {
        self.gone.name(uid)
    }

    /// Returns all pods, in no order.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Returns whether a server has ever sent its complete state of the node. Before, a pod that is
    /// missing here may exist.
    pub const fn complete(&self) -> bool {
        self.complete
    }
}

/// The pods that claim an address.
#[derive(Debug)]
enum Claim {
    One(PodUid),
    Many,
}

impl Claim {
    /// Adds a claim; a pod may claim an address twice.
    fn add(&mut self, other: &PodUid) {
        if !matches!(self, Self::One(uid) if uid == other) {
            *self = Self::Many;
        }
    }
}

/// Error for an address that more than one pod claims, such as while one of them terminates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than one pod of this node claims the address {address}")]
pub(crate) struct Claimed {
    address: IpAddr,
}

/// Reader of the newest snapshot.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<()>,
}

/// Notification of newer snapshots.
#[derive(Debug)]
pub struct Changes(watch::Receiver<()>);

impl View {
    /// Returns the newest snapshot. It must not be held across an await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Subscribes to snapshots: any that is published after this call is reported.
    pub fn changes(&self) -> Changes {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Changes(changes)
    }
}

impl Changes {
    /// Waits for the next snapshot; returns false once the writer is gone.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
