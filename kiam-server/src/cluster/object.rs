//! Kubernetes objects, reduced to the fields that decide about roles.

use std::net::IpAddr;
use std::sync::Arc;

use kiam_common::pod_uid::PodUid;

use crate::permitted::Permitted;

/// The kinds of objects that the server reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Namespace, Self::ServiceAccount, Self::Pod];

    /// Returns the value of `kind` in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
        }
    }
}

/// The key of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// The UID of a pod: a new pod can have the name of one that is still terminating.
    Pod(PodUid),
    /// The name of a namespace.
    Namespace(Box<str>),
    /// The namespace and name of a service account.
    ServiceAccount(Box<str>, Box<str>),
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Pod(Pod),
    Namespace(Namespace),
    ServiceAccount(ServiceAccount),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(pod.uid.clone()),
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.as_ref().into()),
            Self::ServiceAccount(account) => ObjectKey::ServiceAccount(
                account.namespace.as_ref().into(),
                account.name.as_ref().into(),
            ),
        }
    }
}

/// A pod that is not finished. Finished pods (phase Succeeded or Failed) count as deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.creationTimestamp`, in seconds since 1970, or zero.
    pub created: i64,
    /// `spec.nodeName`; `None` until the pod is bound.
    pub node: Option<Arc<str>>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `status.podIPs`.
    pub addresses: Box<[IpAddr]>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The annotation `kubernetes.io/config.hash` of a mirror pod.
    pub static_hash: Option<Box<str>>,
    /// The annotations of the pod that concern kiam.
    pub annotations: Option<Box<Annotations>>,
}

/// The annotations of a pod that concern kiam, unparsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `iam.amazonaws.com/role`.
    pub role: Option<Box<str>>,
    /// `iam.amazonaws.com/session-name`.
    pub session_name: Option<Box<str>>,
    /// `iam.amazonaws.com/external-id`.
    pub external_id: Option<Box<str>>,
    /// `iam.amazonaws.com/session-duration`.
    pub session_duration: Option<Box<str>>,
}

impl Annotations {
    /// Returns the annotations in a box, or `None` if there are none, to save memory.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The compiled annotation `iam.amazonaws.com/permitted`.
    pub permitted: Permitted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The annotation `iam.amazonaws.com/role`.
    pub role: Option<Box<str>>,
}
