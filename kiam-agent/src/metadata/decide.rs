//! What a pod is answered, by one snapshot of the view. Reads, decides, and does nothing else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::refusal::Refusal;
use crate::caller::PodRef;
use crate::view::{Claimed, Grant, Outcome, Pod, Snapshot};

/// What a pod asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask<'a> {
    /// The name of its role.
    Listing,
    /// What its role is.
    Info,
    /// The credentials of a role, which had better be its own.
    Credentials { role: &'a str, extended: bool },
    /// The credentials of its role, whichever that is.
    Own,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This.
    Serve(Bytes),
    /// Nothing.
    Refuse(Refusal),
    /// Nothing, unless a later snapshot has better news.
    Wait(Refusal),
}

/// Decides for a pod that calls from `source`.
pub(super) fn decide(
    snapshot: &Snapshot,
    who: &PodRef,
    source: IpAddr,
    ask: Ask<'_>,
    now: SystemTime,
) -> Verdict {
    let pod = match find(snapshot, who) {
        Ok(pod) => pod,
        // Another pod's address, as long as that one is not quite gone.
        Err(claimed) => return Verdict::Wait(claimed.into()),
    };
    let Some(pod) = pod else {
        if let PodRef::Uid(uid) = who
            && let Some(pod) = snapshot.gone(uid.as_str())
        {
            let pod = pod.to_owned();
            return Verdict::Refuse(Refusal::PodGone { pod });
        }
        return Verdict::Wait(if snapshot.complete() {
            Refusal::UnknownPod {
                pod: who.to_string(),
            }
        } else {
            Refusal::NoView
        });
    };
    if !pod.may_call_from(source) {
        // A pod whose sandbox was made anew has another address before it is published.
        return Verdict::Wait(Refusal::Address {
            pod: pod.to_string(),
            source_ip: source.to_canonical(),
        });
    }
    match &pod.outcome {
        Outcome::NoRole => Verdict::Refuse(Refusal::NoRole {
            pod: pod.to_string(),
            service_account: pod.facts.service_account.clone(),
        }),
        Outcome::Forbidden { role, reason } => Verdict::Refuse(Refusal::Forbidden {
            pod: pod.to_string(),
            role: role.clone(),
            reason: reason.clone(),
        }),
        Outcome::Undecided { awaiting } => Verdict::Wait(Refusal::Undecided {
            pod: pod.to_string(),
            awaiting: awaiting.clone(),
        }),
        Outcome::Granted(grant) => match ask {
            Ask::Listing => Verdict::Serve(grant.listing.clone()),
            Ask::Credentials { role, .. } if !grant.is(role) => {
                Verdict::Refuse(Refusal::OtherRole {
                    pod: pod.to_string(),
                    asked: Refusal::echo(role),
                    own: grant.role.name().to_owned(),
                })
            }
            Ask::Credentials { .. } | Ask::Own | Ask::Info => match (grant.valid(now), ask) {
                (Some(issued), Ask::Info) => Verdict::Serve(issued.info(&grant.role)),
                (Some(issued), Ask::Credentials { extended, .. }) if !extended => {
                    Verdict::Serve(issued.plain())
                }
                (Some(issued), Ask::Own) => Verdict::Serve(issued.container()),
                (Some(issued), _) => Verdict::Serve(issued.extended()),
                (None, _) => without_credentials(pod, grant),
            },
        },
    }
}

/// The pod that is calling, if it is known.
pub(super) fn find<'a>(
    snapshot: &'a Snapshot,
    who: &PodRef,
) -> Result<Option<&'a Arc<Pod>>, Claimed> {
    match who {
        PodRef::Uid(uid) => Ok(snapshot.by_uid(uid.as_str())),
        PodRef::StaticHash(hash) => Ok(snapshot.by_static_hash(hash.as_str())),
        PodRef::Address(address) => snapshot.by_address(*address),
    }
}

fn without_credentials(pod: &Pod, grant: &Grant) -> Verdict {
    let (pod, role) = (pod.to_string(), grant.role.to_string());
    let error = grant.failure.as_ref().map(|failure| failure.error.clone());
    match (&grant.failure, &grant.issued) {
        (Some(failure), _) if failure.permanent => Verdict::Refuse(Refusal::Denied {
            pod,
            role,
            error: failure.error.clone(),
        }),
        (_, Some(issued)) => {
            let refusal = Refusal::expired(pod, role, issued.expiration(), error);
            match grant.failure {
                Some(_) => Verdict::Refuse(refusal),
                None => Verdict::Wait(refusal),
            }
        }
        (Some(failure), None) => Verdict::Refuse(Refusal::Failing {
            pod,
            role,
            error: failure.error.clone(),
        }),
        (None, None) => Verdict::Wait(Refusal::OnTheirWay { pod, role }),
    }
}
