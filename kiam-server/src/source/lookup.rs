//! Lookup of one pod, with the objects that decide about it, in the API.

use kube::Client;
use kube::api::Api;

use super::manifest::{
    self, ManifestError, NamespaceManifest, PodManifest, ServiceAccountManifest,
};
use crate::cluster::PodContext;
use crate::permitted::PermissionOptions;

/// The error of [`lookup`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The pod does not exist.
    #[error("there is no pod {name} in namespace {namespace}")]
    NoPod { namespace: String, name: String },
    /// The pod is finished.
    #[error("the pod {namespace}/{name} is finished (Succeeded or Failed): it gets no credentials")]
    Finished { namespace: String, name: String },
    /// An object is invalid.
    #[error("the {kind} is invalid: {source}")]
    Invalid {
        kind: &'static str,
        source: ManifestError,
    },
    /// A request to the API failed.
    #[error("cannot read the {kind} from the Kubernetes API: {source}")]
    Api {
        kind: &'static str,
        source: Box<kube::Error>,
    },
}

/// Looks up a pod, its namespace and its service account.
///
/// # Errors
/// When the pod does not exist, or cannot be read.
pub(crate) async fn lookup(
    client: Client,
    (namespace, name): (&str, &str),
    options: &PermissionOptions,
) -> Result<PodContext, LookupError> {
    let api = |kind| {
        move |source| LookupError::Api {
            kind,
            source: Box::new(source),
        }
    };
    let invalid = |kind| move |source| LookupError::Invalid { kind, source };
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
    let Ok(pod) = manifest::pod(found).map_err(invalid("pod"))? else {
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
        .map(|found| manifest::namespace(&found.metadata, options))
        .transpose()
        .map_err(invalid("namespace"))?;
    let accounts = Api::<ServiceAccountManifest>::namespaced(client, namespace);
    let found = accounts.get_opt(&pod.service_account).await;
    let account = found
        .map_err(api("service account"))?
        .map(|found| manifest::service_account(&found.metadata))
        .transpose()
        .map_err(invalid("service account"))?;
    Ok(PodContext {
        pod: pod.into(),
        namespace: namespace_found.map(Into::into),
        service_account: account.map(Into::into),
    })
}
