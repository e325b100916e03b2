//! One pod, and what decides about it, read from the API at once.

use kube::Client;
use kube::api::Api;

use super::manifest::{
    self, ManifestError, NamespaceManifest, PodManifest, ServiceAccountManifest,
};
use crate::cluster::Member;
use crate::permitted::Reading;

/// Why a pod could not be looked up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// There is none.
    #[error("there is no pod {name} in namespace {namespace}")]
    NoPod {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// It has ended.
    #[error("the pod {namespace}/{name} has ended (Succeeded or Failed): it gets nothing any more")]
    Finished {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// An object cannot be used.
    #[error("the {kind} cannot be used: {source}")]
    Unusable {
        /// Of which kind it is.
        kind: &'static str,
        /// Why.
        source: ManifestError,
    },
    /// The API does not tell.
    #[error("the Kubernetes API does not tell of the {kind}: {source}")]
    Api {
        /// Of which kind.
        kind: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// Looks up a pod, its namespace and its service account.
///
/// # Errors
/// When there is no such pod, or the API does not tell.
pub async fn lookup(
    client: Client,
    (namespace, name): (&str, &str),
    reading: &Reading,
) -> Result<Member, LookupError> {
    let api = |kind| {
        move |source| LookupError::Api {
            kind,
            source: Box::new(source),
        }
    };
    let unusable = |kind| move |source| LookupError::Unusable { kind, source };
    let (of, named) = (namespace.to_owned(), name.to_owned());
    let pods: Api<PodManifest> =
        Api::namespaced_with(client.clone(), namespace, &manifest::pod_resource());
    let found = pods.get_opt(name).await.map_err(api("pod"))?;
    let Some(found) = found else {
        return Err(LookupError::NoPod {
            namespace: of,
            name: named,
        });
    };
    let Ok(pod) = manifest::pod(found).map_err(unusable("pod"))? else {
        return Err(LookupError::Finished {
            namespace: of,
            name: named,
        });
    };
    let namespaces = Api::<NamespaceManifest>::all(client.clone());
    let found = namespaces
        .get_opt(namespace)
        .await
        .map_err(api("namespace"))?;
    let namespace_found = found
        .map(|found| manifest::namespace(&found.metadata, reading))
        .transpose()
        .map_err(unusable("namespace"))?;
    let accounts = Api::<ServiceAccountManifest>::namespaced(client, namespace);
    let found = accounts.get_opt(&pod.service_account).await;
    let account = found
        .map_err(api("service account"))?
        .map(|found| manifest::service_account(&found.metadata))
        .transpose()
        .map_err(unusable("service account"))?;
    Ok(Member {
        pod: pod.into(),
        namespace: namespace_found.map(Into::into),
        service_account: account.map(Into::into),
    })
}
