//! The wire format of the messages of a session.

use std::time::SystemTime;

use kiam_common::api::node::v1::{
    CredentialsFailed, CredentialsIssued, Forbidden, Granted, NoRole, PodApplied, PodRemoved,
    Synced, Undecided, WatchResponse, pod_applied, watch_response::Update,
};
use kiam_common::credentials::SessionCredentials;

use crate::cluster::object::Pod;
use crate::credentials::Failure;
use crate::policy::Outcome;

fn response(update: Update) -> WatchResponse {
    WatchResponse {
        update: Some(update),
    }
}

/// A pod and its outcome. `identity` is the number of its identity on the stream, if it was
/// granted.
pub(super) fn pod_applied(pod: &Pod, outcome: &Outcome, identity: Option<u64>) -> WatchResponse {
    let outcome = match outcome {
        Outcome::NoRole => pod_applied::Outcome::NoRole(NoRole {}),
        Outcome::Granted(granted) => pod_applied::Outcome::Granted(Granted {
            role_arn: granted.role.as_str().to_owned(),
            identity: identity.unwrap_or_default(),
        }),
        Outcome::Forbidden { role, reason } => pod_applied::Outcome::Forbidden(Forbidden {
            role: role.to_string(),
            reason: reason.to_string(),
        }),
        Outcome::Undecided { awaiting } => pod_applied::Outcome::Undecided(Undecided {
            awaiting: awaiting.to_string(),
        }),
    };
    response(Update::PodApplied(PodApplied {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: pod.service_account.to_string(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        host_network: pod.host_network,
        static_pod_hash: pod.static_hash.as_deref().unwrap_or_default().to_owned(),
        outcome: Some(outcome),
    }))
}

pub(super) fn pod_removed(uid: &str) -> WatchResponse {
    response(Update::PodRemoved(PodRemoved {
        uid: uid.to_owned(),
    }))
}

pub(super) fn issued(identity: u64, credentials: &SessionCredentials) -> WatchResponse {
    let mut issued = CredentialsIssued::default();
    issued.identity = identity;
    issued.access_key_id.clone_from(&credentials.access_key_id);
    credentials
        .secret_access_key
        .expose()
        .clone_into(&mut issued.secret_access_key);
    credentials
        .session_token
        .expose()
        .clone_into(&mut issued.session_token);
    issued.expiration = Some(timestamp(credentials.expiration));
    issued.issued = Some(timestamp(credentials.issued));
    response(Update::CredentialsIssued(issued))
}

pub(super) fn failed(identity: u64, failure: &Failure) -> WatchResponse {
    response(Update::CredentialsFailed(CredentialsFailed {
        identity,
        error: failure.error.message.clone(),
        permanent: failure.error.kind.is_permanent(),
    }))
}

pub(super) fn synced() -> WatchResponse {
    response(Update::Synced(Synced {}))
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}
