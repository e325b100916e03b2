//! One line of the audit log. No field of it can hold a secret: access key ids name sessions in
//! AWS's logs, and external ids are left out.

use std::time::SystemTime;

use serde::Serialize;

use crate::cluster::object::Pod;
use crate::identity::Identity;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A pod gets credentials of a role.
    Grant,
    /// A pod asks for a role and does not get it.
    Refusal,
    /// A grant has ended.
    Revocation,
}

/// One line of the audit log. What is not known is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When, as in RFC 3339.
    pub time: String,
    /// What.
    pub action: Action,
    /// To whom.
    pub pod: PodName,
    /// The pod's service account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// The pod's node.
    pub node: String,
    /// The role's ARN; of a refusal by the policies, the role as it was asked for.
    pub role: String,
    /// Names the session in AWS's logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// Of the credentials that were granted; of a revocation, those that were granted first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Why it was refused or revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What names a pod, now and later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodName {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl Record {
    /// About a pod and a role by name.
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

    /// About a pod and an identity.
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
