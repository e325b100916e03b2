//! The state of the cluster: pods, namespaces and service accounts, reduced to the fields that
//! decide about roles, and indexed by node.
//!
//! A source (the Kubernetes API, or files) writes it. Each node stream reads the part of its node,
//! and is woken when that may have changed. The module does not depend on kube or tonic.

mod addresses;
mod by_uid;
mod index;
pub mod object;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{Notify, watch};

use self::index::Index;
pub use self::index::PodContext;
use self::object::{Kind, Namespace, Object, ObjectKey, Pod, ServiceAccount};

/// Wakes a reader of a part of the cluster. Several wake-ups in quick succession count as one.
pub type Signal = Arc<Notify>;

/// The state of the cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    index: RwLock<Index>,
    synced: watch::Sender<HashSet<Kind>>,
}

/// A subscription to the changes of a node. Dropping it ends the wake-ups.
#[derive(Debug)]
pub struct Subscription {
    cluster: Arc<Cluster>,
    node: Arc<str>,
    signal: Signal,
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces an object. No reader is woken if none of the retained fields changed.
    pub fn apply(&self, object: Object) {
        let mut index = self.write();
        match object {
            Object::Pod(pod) => index.apply_pod(pod),
            Object::Namespace(namespace) => index.apply_namespace(namespace),
            Object::ServiceAccount(account) => index.apply_service_account(account),
        }
    }

    /// Removes an object.
    pub fn delete(&self, key: &ObjectKey) {
        self.write().delete(key);
    }

    /// Removes the objects of a kind that are not in `listed`, a complete list, and marks the kind
    /// as known.
    pub fn listed(&self, kind: Kind, listed: &HashSet<ObjectKey>) {
        self.write().retain(kind, listed);
        self.synced.send_if_modified(|synced| synced.insert(kind));
    }

    /// Waits until every kind is known.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = synced
            .wait_for(|synced| Kind::ALL.iter().all(|kind| synced.contains(kind)))
            .await;
    }

    /// Returns whether every kind is known.
    pub fn is_synced(&self) -> bool {
        self.synced.borrow().len() == Kind::ALL.len()
    }

    /// Returns the pods of a node, ordered by UID.
    pub fn node(&self, node: &str) -> Vec<PodContext> {
        self.read().node(node)
    }

    /// Enables [`Self::by_address`], at the cost of an index.
    pub fn index_addresses(&self) {
        self.write().index_addresses();
    }

    /// Returns the pod with an address: the newest if several claim it, and never one in the
    /// network namespace of its node.
    pub fn by_address(&self, address: IpAddr) -> Option<PodContext> {
        self.read().by_address(address)
    }

    /// Returns a pod by its UID.
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pod(uid)
    }

    /// Returns a pod by its UID, with the objects that decide about it.
    pub fn context(&self, uid: &str) -> Option<PodContext> {
        let index = self.read();
        index.pod(uid).map(|pod| index.context(&pod))
    }

    /// Returns the number of objects of each kind.
    pub fn counts(&self) -> [(Kind, usize); 3] {
        self.read().counts()
    }

    /// Wakes `signal` whenever the part of a node may have changed.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, node: &str, signal: Signal) -> Subscription {
        let node: Arc<str> = node.into();
        self.write()
            .subscribe(Arc::clone(&node), Arc::clone(&signal));
        Subscription {
            cluster: Arc::clone(self),
            node,
            signal,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cluster.write().unsubscribe(&self.node, &self.signal);
    }
}

impl From<Pod> for Object {
    fn from(pod: Pod) -> Self {
        Self::Pod(pod)
    }
}

impl From<Namespace> for Object {
    fn from(namespace: Namespace) -> Self {
        Self::Namespace(namespace)
    }
}

impl From<ServiceAccount> for Object {
    fn from(account: ServiceAccount) -> Self {
        Self::ServiceAccount(account)
    }
}
