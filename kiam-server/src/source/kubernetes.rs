//! The Kubernetes API: one watch for each kind, listed in pages, cut down object by object.

use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
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
use crate::permitted::Reading;

/// Objects in one answer of a list.
const PAGE_SIZE: u32 = 500;

/// The watches that keep a [`Cluster`] like the one that the API describes.
pub struct Watches {
    client: Client,
    cluster: Arc<Cluster>,
    reading: Reading,
    metrics: WatchMetrics,
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

/// An object that cannot be used counts as absent; a finished pod does too.
type Trimmed = Result<Result<Object, ObjectKey>, ManifestError>;

impl Watches {
    /// Watches through `client`, into `cluster`; namespaces' annotations count as `reading` says.
    #[must_use]
    pub fn new(
        client: Client,
        cluster: Arc<Cluster>,
        reading: impl Into<Reading>,
        metrics: WatchMetrics,
    ) -> Self {
        Self {
            client,
            cluster,
            reading: reading.into(),
            metrics,
        }
    }

    /// Watches until told to stop. A watch that breaks begins again by itself, and what was
    /// known stays meanwhile.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            client,
            cluster,
            reading,
            metrics,
        } = self;
        let pods = Api::all_with(client.clone(), &manifest::pod_resource());
        let pods = watch(&cluster, &metrics, Kind::Pod, pods, |pod: PodManifest| {
            manifest::pod(pod).map(|pod| pod.map(Object::Pod))
        });
        let namespaces = watch(
            &cluster,
            &metrics,
            Kind::Namespace,
            Api::all(client.clone()),
            move |NamespaceManifest { metadata, .. }| {
                manifest::namespace(&metadata, &reading).map(|n| Ok(n.into()))
            },
        );
        let accounts = watch(
            &cluster,
            &metrics,
            Kind::ServiceAccount,
            Api::all(client),
            |ServiceAccountManifest { metadata, .. }| {
                manifest::service_account(&metadata).map(|account| Ok(account.into()))
            },
        );
        tokio::select! {
            () = stop.cancelled() => {}
            ((), (), ()) = async { tokio::join!(pods, namespaces, accounts) } => {}
        }
    }
}

async fn watch<K>(
    cluster: &Cluster,
    metrics: &WatchMetrics,
    kind: Kind,
    api: Api<DeserializeGuard<K>>,
    trim: impl Fn(K) -> Trimmed,
) where
    K: kube::Resource + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().page_size(PAGE_SIZE);
    let events = watcher::watcher(api, config).default_backoff();
    follow(cluster, metrics, kind, events, trim).await;
}

/// Applies a watch's events to the cluster.
pub(super) async fn follow<K>(
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
                tracing::warn!(kind = kind.as_str(), reason, %error, "the watch broke; trying again");
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
                "unusable object: {problem}"
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
