//! Kubernetes objects as in manifests, and their reduction.
//!
//! Only the fields that decide about roles are parsed.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Namespace as ApiNamespace, Pod as ApiPod, ServiceAccount as ApiServiceAccount,
};
use kiam_common::pod_uid::PodUid;
use kube::api::{ApiResource, ObjectMeta, PartialObjectMeta};
use kube::core::Object as Shaped;
use serde::Deserialize;

use crate::cluster::object::{Annotations, Namespace, ObjectKey, Pod, ServiceAccount};
use crate::permitted::{PermissionOptions, Permitted};
use crate::policy::{self};

/// A pod, reduced to the fields that are parsed.
pub(crate) type PodManifest = Shaped<PodSpec, PodStatus>;
/// The metadata of a namespace.
pub(super) type NamespaceManifest = PartialObjectMeta<ApiNamespace>;
/// The metadata of a service account.
pub(super) type ServiceAccountManifest = PartialObjectMeta<ApiServiceAccount>;

/// The fields of `spec` that decide.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    node_name: Option<Box<str>>,
    service_account_name: Option<Box<str>>,
    host_network: Option<bool>,
}

/// The fields of `status` that decide.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: Option<Box<str>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<Box<str>>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodAddress>>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodAddress {
    ip: Box<str>,
}

/// The error of an invalid object, which counts as absent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A required field is missing.
    #[error("it has no {field}")]
    Missing { field: &'static str },
    /// An address is invalid.
    #[error("its status.podIPs contains the invalid address {address:?}")]
    Address { address: Box<str> },
}

/// The resource of a watch of pods.
pub(super) fn pod_resource() -> ApiResource {
    ApiResource::erase::<ApiPod>(&())
}

/// Reduces a pod. Returns the key of a finished pod, which counts as deleted.
pub(super) fn pod(manifest: PodManifest) -> Result<Result<Pod, ObjectKey>, ManifestError> {
    let Shaped {
        metadata,
        spec,
        status,
        ..
    } = manifest;
    let uid: PodUid = required(metadata.uid.as_deref(), "metadata.uid")?.into();
    let status = status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Ok(Err(ObjectKey::Pod(uid)));
    }
    let listed = status
        .pod_ips
        .unwrap_or_default()
        .into_iter()
        .map(|address| address.ip);
    // Old API servers and hand-written files may have only podIP.
    let mut addresses = listed
        .chain(status.pod_ip)
        .map(parse_address)
        .collect::<Result<Vec<_>, _>>()?;
    addresses.sort_unstable();
    addresses.dedup();
    let annotations = Annotations {
        role: annotation(&metadata, policy::ROLE),
        session_name: annotation(&metadata, policy::SESSION_NAME),
        external_id: annotation(&metadata, policy::EXTERNAL_ID),
        session_duration: annotation(&metadata, policy::SESSION_DURATION),
    };
    Ok(Ok(Pod {
        uid,
        namespace: required(metadata.namespace.as_deref(), "metadata.namespace")?.into(),
        name: required(metadata.name.as_deref(), "metadata.name")?.into(),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |created| created.0.as_second()),
        node: spec
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Arc::from),
        service_account: spec
            .service_account_name
            .as_deref()
            .unwrap_or("default")
            .into(),
        addresses: addresses.into(),
        host_network: spec.host_network.unwrap_or_default(),
        // The kubelet sets the hash of mirror pods only; any other pod may have been annotated by
        // its owner.
        static_hash: annotation(&metadata, "kubernetes.io/config.mirror")
            .and_then(|_| annotation(&metadata, "kubernetes.io/config.hash")),
        annotations: annotations.boxed(),
    }))
}

pub(super) fn namespace(
    metadata: &ObjectMeta,
    options: &PermissionOptions,
) -> Result<Namespace, ManifestError> {
    Ok(Namespace {
        name: required(metadata.name.as_deref(), "metadata.name")?.into(),
        permitted: Permitted::read(
            annotation(metadata, policy::PERMITTED).as_deref(),
            annotation(metadata, policy::ALLOWED).as_deref(),
            options,
        ),
    })
}

pub(super) fn service_account(metadata: &ObjectMeta) -> Result<ServiceAccount, ManifestError> {
    Ok(ServiceAccount {
        namespace: required(metadata.namespace.as_deref(), "metadata.namespace")?.into(),
        name: required(metadata.name.as_deref(), "metadata.name")?.into(),
        role: annotation(metadata, policy::ROLE),
    })
}

fn annotation(metadata: &ObjectMeta, name: &str) -> Option<Box<str>> {
    metadata
        .annotations
        .as_ref()?
        .get(name)
        .map(|value| value.as_str().into())
}

fn required<'a>(value: Option<&'a str>, field: &'static str) -> Result<&'a str, ManifestError> {
    value
        .filter(|value| !value.is_empty())
        .ok_or(ManifestError::Missing { field })
}

fn parse_address(address: Box<str>) -> Result<IpAddr, ManifestError> {
    address
        .parse()
        .map_err(|_unparsable| ManifestError::Address { address })
}
