//! From the wire to the view: every text and time is checked before it is used.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use kiam_common::api::node::v1 as api;
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::{RoleArn, RoleError};

use crate::view::{Decision, Failure, PodFacts, Uid, Update};

/// The longest name of a Kubernetes object, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// More addresses than any pod has.
const MAX_ADDRESSES: usize = 16;
/// What is kept of a text that is only shown: a reason, an error.
const MAX_PROSE_BYTES: usize = 1024;

/// Why a message of the server cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A message of a kind that this agent does not know.
    #[error("it is of a kind that this agent does not know; is the server newer than the agent?")]
    Kind,
    /// A text that names something is missing, too long or has strange characters.
    #[error("its {what} is empty, longer than {MAX_NAME_BYTES} bytes, or not of printable ASCII")]
    Name {
        /// Which text.
        what: &'static str,
    },
    /// An address is none.
    #[error("one of its addresses is none, or there are more than {MAX_ADDRESSES}")]
    Address,
    /// A granted role is none.
    #[error("the role that it grants cannot be used: {0}")]
    Role(#[from] RoleError),
    /// A time is missing or none.
    #[error("its {what} is missing, or no time since 1970")]
    Time {
        /// Which time.
        what: &'static str,
    },
}

/// What is left to do after a message that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    /// What is wrong.
    pub(super) why: Malformed,
    /// The pod that it spoke of: whatever it was granted before may not stay.
    pub(super) about: Option<Uid>,
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
            let uid = Uid::from(name("uid", &pod.uid)?);
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

fn pod_applied(pod: api::PodApplied, uid: Uid) -> Result<Update, Malformed> {
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
    use api::pod_applied::Outcome;
    let decision = match outcome.ok_or(Malformed::Kind)? {
        Outcome::NoRole(api::NoRole {}) => Decision::NoRole,
        Outcome::Granted(api::Granted { role_arn, identity }) => Decision::Granted {
            role: RoleArn::parse(&role_arn)?,
            identity,
        },
        Outcome::Forbidden(api::Forbidden { role, reason }) => Decision::Forbidden {
            role: prose(&role),
            reason: prose(&reason),
        },
        Outcome::Undecided(api::Undecided { awaiting }) => Decision::Undecided {
            awaiting: prose(&awaiting),
        },
    };
    Ok(Update::Applied(facts, decision))
}

/// Takes the secrets out rather than copying them.
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

/// A text for people: one line, and no more of it than fits one.
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
