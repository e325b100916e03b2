//! What the server knows of the cluster: pods, namespaces and service accounts, cut down to
//! what decides about roles, and indexed by node.
//!
//! A source (the Kubernetes API, or files) writes; the node streams read their node's part and
//! are woken when it may look different. The module knows neither kube nor tonic.

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
pub use self::index::Member;
use self::object::{Kind, Namespace, Object, ObjectKey, Pod, ServiceAccount};

/// Wakes whoever reads a node's part of the cluster. Wake-ups in quick succession are one.
pub type Signal = Arc<Notify>;

/// What the server knows of the cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    index: RwLock<Index>,
    synced: watch::Sender<HashSet<Kind>>,
}

/// A reader's place at a node; dropping it ends the wake-ups.
#[derive(Debug)]
pub struct Subscription {
    cluster: Arc<Cluster>,
    node: Arc<str>,
    signal: Signal,
}

impl Cluster {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An object is there, or has changed. Nobody is woken if nothing about it matters here.
    pub fn apply(&self, object: Object) {
        let mut index = self.write();
        match object {
            Object::Pod(pod) => index.apply_pod(pod),
            Object::Namespace(namespace) => index.apply_namespace(namespace),
            Object::ServiceAccount(account) => index.apply_service_account(account),
        }
    }

    /// An object is gone.
    pub fn delete(&self, key: &ObjectKey) {
        self.write().delete(key);
    }

    /// All objects of a kind have been listed: what is not in `listed` is gone, and from now on
    /// the kind counts as known.
    pub fn listed(&self, kind: Kind, listed: &HashSet<ObjectKey>) {
        self.write().retain(kind, listed);
        self.synced.send_if_modified(|synced| synced.insert(kind));
    }

    /// Waits until every kind has been listed once.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as this borrow of self.
        let _ = synced
            .wait_for(|synced| Kind::ALL.iter().all(|kind| synced.contains(kind)))
            .await;
    }

    /// Whether every kind has been listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.borrow().len() == Kind::ALL.len()
    }

    /// The pods of a node in the order of their UIDs, and what decides about each of them.
    #[must_use]
    pub fn node(&self, node: &str) -> Vec<Member> {
        self.read().node(node)
    }

    /// Has pods found by their address from now on, at the cost of memory.
    pub fn keep_addresses(&self) {
        self.write().keep_addresses();
    }

    /// The pod that has an address, and what decides about it. Of several that claim it, the newest;
    /// never one that is in its node's network.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<Member> {
        self.read().at(address)
    }

    /// A pod by its UID.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pod(uid)
    }

    /// A pod by its UID, and what decides about it.
    #[must_use]
    pub fn member(&self, uid: &str) -> Option<Member> {
        let index = self.read();
        index.pod(uid).map(|pod| index.member(&pod))
    }

    /// How many pods, namespaces and service accounts are known.
    #[must_use]
    pub fn counts(&self) -> [(Kind, usize); 3] {
        self.read().counts()
    }

    /// Has `signal` woken whenever the node's part may look different.
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
