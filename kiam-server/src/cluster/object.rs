//! Kubernetes objects, cut down to what decides about roles.

use std::net::IpAddr;
use std::sync::Arc;

use crate::permitted::Permitted;

/// The kinds of objects that the server reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// v1 Namespace.
    Namespace,
    /// v1 ServiceAccount.
    ServiceAccount,
    /// v1 Pod.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Namespace, Self::ServiceAccount, Self::Pod];

    /// As in `kind:` of a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
        }
    }
}

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// A pod's UID: a name can be taken again by another pod while the first is still going.
    Pod(Arc<str>),
    /// A namespace's name.
    Namespace(Box<str>),
    /// Namespace and name of a service account.
    ServiceAccount(Box<str>, Box<str>),
}

/// An object of any of the kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A service account.
    ServiceAccount(ServiceAccount),
}

impl Object {
    /// What names it.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(Arc::clone(&pod.uid)),
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.as_ref().into()),
            Self::ServiceAccount(account) => ObjectKey::ServiceAccount(
                account.namespace.as_ref().into(),
                account.name.as_ref().into(),
            ),
        }
    }
}

/// A pod that is not finished. Finished ones (phase Succeeded or Failed) count as gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.creationTimestamp`, in seconds since 1970; zero where there is none.
    pub created: i64,
    /// `spec.nodeName`; none until the pod is bound.
    pub node: Option<Arc<str>>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `status.podIPs`.
    pub addresses: Box<[IpAddr]>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The annotation `kubernetes.io/config.hash` of a mirror pod.
    pub static_hash: Option<Box<str>>,
    /// The pod's annotations that concern kiam.
    pub annotations: Option<Box<Annotations>>,
}

/// A pod's annotations that concern kiam, as they were written.
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
    /// Nothing at all is kept of a pod without any.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// What its annotation `iam.amazonaws.com/permitted` permits, compiled.
    pub permitted: Permitted,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The annotation `iam.amazonaws.com/role`.
    pub role: Option<Box<str>>,
}
