//! The maps behind [`Cluster`](super::Cluster), and the wake-ups of their readers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Signal;
use super::addresses::Addresses;
use super::by_uid::ByUid;
use super::object::{Kind, Namespace, ObjectKey, Pod, ServiceAccount};

/// A pod, with the objects that decide about it.
#[derive(Debug, Clone)]
pub struct PodContext {
    pub pod: Arc<Pod>,
    /// The namespace, if it is known.
    pub namespace: Option<Arc<Namespace>>,
    /// The service account, if it exists.
    pub service_account: Option<Arc<ServiceAccount>>,
}

impl PodContext {
    /// Returns whether both refer to the same objects, in which case the decision is the same.
    pub fn is_same(&self, other: &Self) -> bool {
        fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
            one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
        }
        Arc::ptr_eq(&self.pod, &other.pod)
            && same(self.namespace.as_ref(), other.namespace.as_ref())
            && same(
                self.service_account.as_ref(),
                other.service_account.as_ref(),
            )
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pods: HashSet<ByUid>,
    namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    /// Keyed by namespace, then name.
    service_accounts: HashMap<Arc<str>, HashMap<Arc<str>, Arc<ServiceAccount>>>,
    nodes: HashMap<Arc<str>, Node>,
    /// Present after [`Index::index_addresses`].
    addresses: Option<Addresses>,
}

#[derive(Debug, Default)]
struct Node {
    pods: BTreeSet<ByUid>,
    readers: Vec<Signal>,
}

impl Node {
    fn wake(&self) {
        for reader in &self.readers {
            reader.notify_one();
        }
    }

    fn is_unused(&self) -> bool {
        self.pods.is_empty() && self.readers.is_empty()
    }
}

impl Index {
    pub(super) fn apply_pod(&mut self, mut pod: Pod) {
        if let Some(ByUid(known)) = self.pods.get(pod.uid.as_str()) {
            if **known == pod {
                return;
            }
            // Kubernetes binds a pod once. If one moved nevertheless, its old node must not keep
            // it.
            if known.node != pod.node {
                self.remove_pod(pod.uid.as_str());
            }
        }
        self.share_names(&mut pod);
        let pod = Arc::new(pod);
        if let Some(addresses) = &mut self.addresses {
            if let Some(ByUid(known)) = self.pods.get(pod.uid.as_str()) {
                addresses.remove(known);
            }
            addresses.insert(&pod);
        }
        if let Some(name) = &pod.node {
            let node = self.nodes.entry(Arc::clone(name)).or_default();
            node.pods.replace(ByUid(Arc::clone(&pod)));
            node.wake();
        }
        self.pods.replace(ByUid(pod));
    }

    /// Replaces the names in a pod by shared copies: thousands of pods contain the same few names.
    fn share_names(&self, pod: &mut Pod) {
        if let Some(namespace) = self.namespaces.get(&pod.namespace) {
            pod.namespace = Arc::clone(&namespace.name);
        }
        let accounts = self.service_accounts.get(&pod.namespace);
        if let Some(account) = accounts.and_then(|accounts| accounts.get(&pod.service_account)) {
            pod.service_account = Arc::clone(&account.name);
        }
        if let Some(name) = &mut pod.node
            && let Some((shared, _)) = self.nodes.get_key_value(name)
        {
            *name = Arc::clone(shared);
        }
    }

    pub(super) fn apply_namespace(&mut self, namespace: Namespace) {
        let name = Arc::clone(&namespace.name);
        if self
            .namespaces
            .get(&name)
            .is_some_and(|known| **known == namespace)
        {
            return;
        }
        self.namespaces
            .insert(Arc::clone(&name), Arc::new(namespace));
        self.wake_where(|pod| pod.namespace == name);
    }

    pub(super) fn apply_service_account(&mut self, account: ServiceAccount) {
        let of_namespace = self
            .service_accounts
            .entry(Arc::clone(&account.namespace))
            .or_default();
        let known = of_namespace.get(&account.name);
        if known.is_some_and(|known| **known == account) {
            return;
        }
        let account = Arc::new(account);
        of_namespace.insert(Arc::clone(&account.name), Arc::clone(&account));
        self.wake_where(|pod| pod.of_service_account(&account.namespace, &account.name));
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Pod(uid) => self.remove_pod(uid.as_str()),
            ObjectKey::Namespace(name) => {
                if self.namespaces.remove(name.as_ref()).is_some() {
                    self.wake_where(|pod| *pod.namespace == **name);
                }
            }
            ObjectKey::ServiceAccount(namespace, name) => {
                let Some(accounts) = self.service_accounts.get_mut(namespace.as_ref()) else {
                    return;
                };
                if accounts.remove(name.as_ref()).is_some() {
                    if accounts.is_empty() {
                        self.service_accounts.remove(namespace.as_ref());
                    }
                    self.wake_where(|pod| pod.of_service_account(namespace, name));
                }
            }
        }
    }

    /// Removes the objects of `kind` that are not in `listed`.
    pub(super) fn retain(&mut self, kind: Kind, listed: &HashSet<ObjectKey>) {
        let known: Vec<ObjectKey> = match kind {
            Kind::Pod => self
                .pods
                .iter()
                .map(|ByUid(pod)| ObjectKey::Pod(pod.uid.clone()))
                .collect(),
            Kind::Namespace => {
                let names = self.namespaces.keys();
                names
                    .map(|name| ObjectKey::Namespace(name.as_ref().into()))
                    .collect()
            }
            Kind::ServiceAccount => {
                let accounts = self.service_accounts.values().flat_map(HashMap::values);
                accounts
                    .map(|account| {
                        let (namespace, name) = (&account.namespace, &account.name);
                        ObjectKey::ServiceAccount(namespace.as_ref().into(), name.as_ref().into())
                    })
                    .collect()
            }
        };
        for key in known.iter().filter(|key| !listed.contains(*key)) {
            self.delete(key);
        }
    }

    /// Returns the pods of a node, ordered by UID.
    pub(super) fn node(&self, node: &str) -> Vec<PodContext> {
        let Some(node) = self.nodes.get(node) else {
            return Vec::new();
        };
        let pods = node.pods.iter();
        pods.map(|ByUid(pod)| self.context(pod)).collect()
    }

    pub(super) fn context(&self, pod: &Arc<Pod>) -> PodContext {
        PodContext {
            pod: Arc::clone(pod),
            namespace: self.namespaces.get(&pod.namespace).cloned(),
            service_account: self
                .service_accounts
                .get(&pod.namespace)
                .and_then(|accounts| accounts.get(&pod.service_account))
                .cloned(),
        }
    }

    pub(super) fn index_addresses(&mut self) {
        let mut addresses = Addresses::default();
        for ByUid(pod) in &self.pods {
            addresses.insert(pod);
        }
        self.addresses = Some(addresses);
    }

    pub(super) fn by_address(&self, address: IpAddr) -> Option<PodContext> {
        let pod = self.addresses.as_ref()?.get(address)?;
        Some(self.context(pod))
    }

    pub(super) fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.get(uid).map(|ByUid(pod)| Arc::clone(pod))
    }

    pub(super) fn counts(&self) -> [(Kind, usize); 3] {
        [
            (Kind::Namespace, self.namespaces.len()),
            (
                Kind::ServiceAccount,
                self.service_accounts.values().map(HashMap::len).sum(),
            ),
            (Kind::Pod, self.pods.len()),
        ]
    }

    pub(super) fn subscribe(&mut self, node: Arc<str>, signal: Signal) {
        self.nodes.entry(node).or_default().readers.push(signal);
    }

    pub(super) fn unsubscribe(&mut self, name: &str, signal: &Signal) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.readers.retain(|reader| !Arc::ptr_eq(reader, signal));
            if node.is_unused() {
                self.nodes.remove(name);
            }
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        let Some(ByUid(pod)) = self.pods.take(uid) else {
            return;
        };
        if let Some(addresses) = &mut self.addresses {
            addresses.remove(&pod);
        }
        let Some(name) = &pod.node else { return };
        if let Some(node) = self.nodes.get_mut(name) {
            node.pods.remove(uid);
            node.wake();
            if node.is_unused() {
                self.nodes.remove(name);
            }
        }
    }

    /// Wakes the readers of every node with a pod that `concerns` selects. Skips nodes without
    /// readers.
    fn wake_where(&self, concerns: impl Fn(&Pod) -> bool) {
        for node in self.nodes.values().filter(|node| !node.readers.is_empty()) {
            if node.pods.iter().any(|ByUid(pod)| concerns(pod)) {
                node.wake();
            }
        }
    }
}

impl Pod {
    fn of_service_account(&self, namespace: &str, name: &str) -> bool {
        *self.service_account == *name && *self.namespace == *namespace
    }
}
