//! The Kubernetes API: one watch for each kind, listed in pages, reduced object by object.

use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use kiam_common::tasks::Tasks;
use kube::Client;
use kube::api::{Api, ObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::manifest::{
    self, ManifestError, NamespaceManifest, PodManifest, ServiceAccountManifest,
};
use super::metrics::WatchMetrics;
use crate::cluster::Cluster;
use crate::cluster::object::{Kind, Object, ObjectKey};
use crate::permitted::PermissionOptions;

/// Objects per page of a list.
const PAGE_SIZE: u32 = 500;

/// The watches that keep a [`Cluster`] equal to the state of the API.
pub(crate) struct Watches {
    client: Client,
    cluster: Arc<Cluster>,
    options: PermissionOptions,
    metrics: WatchMetrics,
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

/// An object, the key of a finished pod, or why the object is invalid. The latter two count as
/// absent.
type Trimmed = Result<Result<Object, ObjectKey>, ManifestError>;

impl Watches {
    /// Watches through `client`, into `cluster`. `options` says which annotations of namespaces
    /// count.
    pub(crate) fn new(
        client: Client,
        cluster: Arc<Cluster>,
        options: impl Into<PermissionOptions>,
        metrics: WatchMetrics,
    ) -> Self {
        Self {
            client,
            cluster,
            options: options.into(),
            metrics,
        }
    }

    /// Starts a task for each kind. A watch that breaks restarts by itself, and the known objects
    /// stay meanwhile.
    pub(crate) fn spawn(self, tasks: &mut Tasks) {
        let client = &self.client;
        let pods = Api::all_with(client.clone(), &manifest::pod_resource());
        let namespaces = Api::all(client.clone());
        let accounts = Api::all(client.clone());
        let pods = self.watch(tasks.stop(), Kind::Pod, pods, |pod: PodManifest| {
            manifest::pod(pod).map(|pod| pod.map(Object::Pod))
        });
        tasks.spawn("pod watch", pods);
        let options = self.options.clone();
        let namespaces = self.watch(
            tasks.stop(),
            Kind::Namespace,
            namespaces,
            move |NamespaceManifest { metadata, .. }| {
                manifest::namespace(&metadata, &options).map(|namespace| Ok(namespace.into()))
            },
        );
        tasks.spawn("namespace watch", namespaces);
        let accounts = self.watch(
            tasks.stop(),
            Kind::ServiceAccount,
            accounts,
            |ServiceAccountManifest { metadata, .. }| {
                manifest::service_account(&metadata).map(|account| Ok(account.into()))
            },
        );
        tasks.spawn("service account watch", accounts);
    }

    /// Watches a kind until `stop` is cancelled.
    fn watch<K>(
        &self,
        stop: CancellationToken,
        kind: Kind,
        api: Api<DeserializeGuard<K>>,
        trim: impl Fn(K) -> Trimmed + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        K: kube::Resource + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let (cluster, metrics) = (Arc::clone(&self.cluster), self.metrics.clone());
        async move {
            let config = watcher::Config::default().page_size(PAGE_SIZE);
            let events = watcher::watcher(api, config).default_backoff();
            tokio::select! {
                () = stop.cancelled() => {}
                () = apply_events(&cluster, &metrics, kind, events, trim) => {
                    tracing::error!(kind = kind.as_str(), "the watch ended");
                }
            }
        }
    }
}

/// Applies the events of a watch to the cluster, until the watch ends.
pub(super) async fn apply_events<K>(
    cluster: &Cluster,
    metrics: &WatchMetrics,
    kind: Kind,
    events: impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>>,
    trim: impl Fn(K) -> Trimmed,
) where
    K: kube::Resource,
{
    let mut listed = HashSet::new();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        if event.is_ok() {
            metrics.event(kind);
        }
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                if let Some(key) = apply(cluster, kind, object, &trim) {
                    listed.insert(key);
                }
            }
            Ok(Event::InitDone) => {
                cluster.listed(kind, &listed);
                tracing::info!(kind = kind.as_str(), objects = listed.len(), "listed");
                listed = HashSet::new();
            }
            Ok(Event::Apply(object)) => {
                metrics.lag(kind, metadata(&object));
                apply(cluster, kind, object, &trim);
            }
            Ok(Event::Delete(object)) => {
                if let Some(key) = key_of(kind, metadata(&object)) {
                    cluster.delete(&key);
                }
            }
            Err(error) => {
                let reason = metrics.error(kind, &error);
                tracing::warn!(kind = kind.as_str(), reason, %error, "the watch broke; restarting it");
            }
        }
    }
}

fn metadata<K: kube::Resource>(object: &DeserializeGuard<K>) -> &ObjectMeta {
    match &object.0 {
        Ok(object) => object.meta(),
        Err(invalid) => &invalid.metadata,
    }
}

fn apply<K: kube::Resource>(
    cluster: &Cluster,
    kind: Kind,
    object: DeserializeGuard<K>,
    trim: impl Fn(K) -> Trimmed,
) -> Option<ObjectKey> {
    let (metadata, trimmed) = match object.0 {
        Ok(object) => (
            object.meta().clone(),
            trim(object).map_err(|error| error.to_string()),
        ),
        Err(invalid) => (invalid.metadata, Err(invalid.error)),
    };
    match trimmed {
        Ok(Ok(object)) => {
            let key = object.key();
            cluster.apply(object);
            Some(key)
        }
        Ok(Err(finished)) => {
            cluster.delete(&finished);
            None
        }
        Err(problem) => {
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            let name = metadata.name.as_deref().unwrap_or_default();
            tracing::error!(
                kind = kind.as_str(),
                namespace,
                name,
                "ignoring an invalid object: {problem}"
            );
            if let Some(key) = key_of(kind, &metadata) {
                cluster.delete(&key);
            }
            None
        }
    }
}

fn key_of(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectKey> {
    let name = || metadata.name.as_deref().map(Box::from);
    Some(match kind {
        Kind::Pod => ObjectKey::Pod(metadata.uid.as_deref()?.into()),
        Kind::Namespace => ObjectKey::Namespace(name()?),
        Kind::ServiceAccount => {
            ObjectKey::ServiceAccount(metadata.namespace.as_deref()?.into(), name()?)
        }
    })
}
