//! Conversion of messages to updates: every text and time is checked.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use kiam_common::api::node::v1 as api;
use kiam_common::credentials::SessionCredentials;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::{RoleArn, RoleError};

use crate::view::{Failure, GrantedRole, Outcome, PodFacts, Update};

/// Maximum length of the name of a Kubernetes object, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// Maximum number of addresses of a pod.
const MAX_ADDRESSES: usize = 16;
/// Maximum length of texts for people, in bytes: reasons and errors.
const MAX_PROSE_BYTES: usize = 1024;

/// Reason why a message of the server cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Malformed {
    /// The message is of an unknown kind.
    #[error("unknown kind of message; the server may be newer than the agent")]
    Kind,
    /// A name is empty, too long, or has invalid characters.
    #[error("its {what} is empty, longer than {MAX_NAME_BYTES} bytes, or not printable ASCII")]
    Name {
        /// Name of the text.
        what: &'static str,
    },
    /// An address is invalid, or there are too many.
    #[error("one of its addresses is invalid, or there are more than {MAX_ADDRESSES}")]
    Address,
    /// The granted role is invalid.
    #[error("the granted role is invalid: {0}")]
    Role(#[from] RoleError),
    /// A time is missing or invalid.
    #[error("its {what} is missing, or not a time since 1970")]
    Time {
        /// Name of the time.
        what: &'static str,
    },
}

/// A message that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    /// The reason.
    pub(super) why: Malformed,
    /// The pod that it is about, which must lose what it was granted before.
    pub(super) about: Option<PodUid>,
}

impl From<Malformed> for Unusable {
    fn from(why: Malformed) -> Self {
        Self { why, about: None }
    }
}

pub(super) fn update(message: api::WatchResponse) -> Result<Update, Unusable> {
    use api::watch_response::Update as Wire;
    match message.update.ok_or(Malformed::Kind)? {
        Wire::PodApplied(pod) => {
            let uid = PodUid::from(name("uid", &pod.uid)?);
            pod_applied(pod, uid.clone()).map_err(|why| Unusable {
                why,
                about: Some(uid),
            })
        }
        Wire::PodRemoved(pod) => Ok(Update::Removed(name("uid", &pod.uid)?.into())),
        Wire::CredentialsIssued(issued) => Ok(credentials_issued(issued)?),
        Wire::CredentialsFailed(api::CredentialsFailed {
            identity,
            error,
            permanent,
        }) => Ok(Update::Failed {
            identity,
            failure: Failure {
                error: prose(&error),
                permanent,
            },
        }),
        Wire::Synced(api::Synced {}) => Ok(Update::Synced),
    }
}

fn pod_applied(pod: api::PodApplied, uid: PodUid) -> Result<Update, Malformed> {
    let api::PodApplied {
        uid: _,
        namespace,
        name: pod_name,
        service_account,
        addresses,
        host_network,
        static_pod_hash,
        outcome,
    } = pod;
    if addresses.len() > MAX_ADDRESSES {
        return Err(Malformed::Address);
    }
    let addresses = addresses
        .iter()
        .map(|text| text.parse::<IpAddr>().map(|ip| ip.to_canonical()))
        .collect::<Result<_, _>>()
        .map_err(|_not_one| Malformed::Address)?;
    let optional = |what, text: String| match text.as_str() {
        "" => Ok(None),
        text => name(what, text).map(|text| Some(text.into())),
    };
    let facts = PodFacts {
        uid,
        namespace: name("namespace", &namespace)?.into(),
        name: name("name", &pod_name)?.into(),
        service_account: optional("service account", service_account)?.unwrap_or_default(),
        addresses,
        host_network,
        static_hash: optional("static pod hash", static_pod_hash)?,
    };
    use api::pod_applied::Outcome as Wire;
    let outcome = match outcome.ok_or(Malformed::Kind)? {
        Wire::NoRole(api::NoRole {}) => Outcome::NoRole,
        Wire::Granted(api::Granted { role_arn, identity }) => Outcome::Granted(GrantedRole {
            role: RoleArn::parse(&role_arn)?,
            identity,
        }),
        Wire::Forbidden(api::Forbidden { role, reason }) => Outcome::Forbidden {
            role: prose(&role),
            reason: prose(&reason),
        },
        Wire::Undecided(api::Undecided { awaiting }) => Outcome::Undecided {
            awaiting: prose(&awaiting),
        },
    };
    Ok(Update::Applied(facts, outcome))
}

/// Moves the secrets out instead of copying them.
fn credentials_issued(mut issued: api::CredentialsIssued) -> Result<Update, Malformed> {
    let credentials = SessionCredentials {
        access_key_id: std::mem::take(&mut issued.access_key_id),
        secret_access_key: std::mem::take(&mut issued.secret_access_key).into(),
        session_token: std::mem::take(&mut issued.session_token).into(),
        expiration: time("expiration", issued.expiration)?,
        issued: time("time of issue", issued.issued)?,
    };
    Ok(Update::Issued {
        identity: issued.identity,
        credentials,
    })
}

fn name<'a>(what: &'static str, text: &'a str) -> Result<&'a str, Malformed> {
    let valid = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > MAX_NAME_BYTES || !valid(text) {
        return Err(Malformed::Name { what });
    }
    Ok(text)
}

/// Reduces a text for people to one line of limited length.
fn prose(text: &str) -> Box<str> {
    let mut line = String::with_capacity(text.len().min(MAX_PROSE_BYTES) + 4);
    for character in text.chars() {
        if line.len() + character.len_utf8() > MAX_PROSE_BYTES {
            line.push('…');
            break;
        }
        line.push(if character.is_control() {
            ' '
        } else {
            character
        });
    }
    line.into()
}

fn time(
    what: &'static str,
    value: Option<prost_types::Timestamp>,
) -> Result<SystemTime, Malformed> {
    let error = Malformed::Time { what };
    let Some(prost_types::Timestamp { seconds, nanos }) = value else {
        return Err(error);
    };
    let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) =
        (u64::try_from(seconds), u32::try_from(nanos))
    else {
        return Err(error);
    };
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::new(seconds, nanos))
        .ok_or(error)
}

#[cfg(test)]
mod tests;
