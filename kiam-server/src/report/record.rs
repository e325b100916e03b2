//! Records of the audit log. No field can contain a secret: access key IDs are not secret, and
//! external IDs are omitted.

use std::time::SystemTime;

use serde::Serialize;

use crate::cluster::object::Pod;
use crate::identity::Identity;

/// The action of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A pod gets the credentials of a role.
    Grant,
    /// A pod does not get the credentials of its role.
    Refusal,
    /// A grant ended.
    Revocation,
}

/// A record of the audit log. Unknown fields are omitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The time in RFC 3339 format.
    pub time: String,
    pub action: Action,
    pub pod: PodName,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    pub node: String,
    /// The ARN of the role; in a refusal by the policies, the role as annotated.
    pub role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// The access key ID of the granted credentials; in a revocation, of the first ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The reason of a refusal or revocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The name and UID of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Record {
    /// A record for a pod and the name of a role.
    pub(super) fn new(now: SystemTime, action: Action, node: &str, pod: &Pod, role: &str) -> Self {
        Self {
            time: jiff::Timestamp::try_from(now)
                .map_or_else(|_outside| String::new(), |time| format!("{time:.6}")),
            action,
            pod: PodName {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                uid: pod.uid.to_string(),
            },
            service_account: pod.service_account.to_string(),
            node: node.to_owned(),
            role: role.to_owned(),
            session_name: None,
            access_key_id: None,
            reason: None,
        }
    }

    /// A record for a pod and an identity.
    pub(super) fn of(
        now: SystemTime,
        action: Action,
        node: &str,
        pod: &Pod,
        identity: &Identity,
    ) -> Self {
        Self {
            session_name: Some(identity.session_name.clone()),
            ..Self::new(now, action, node, pod, identity.role.as_str())
        }
    }
}
