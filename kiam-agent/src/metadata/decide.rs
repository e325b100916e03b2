//! Resolution about a request, from one snapshot of the view. No side effects.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::denial::Denial;
use crate::caller::PodRef;
use crate::view::{Claimed, Grant, Outcome, Pod, Snapshot};

/// Subject of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask<'a> {
    /// The name of the pod's role.
    Listing,
    /// Information about the pod's role.
    Info,
    /// The credentials of a role, which must be the pod's.
    Credentials { role: &'a str, extended: bool },
    /// The credentials of the pod's role, without its name.
    Own,
}

/// Resolution about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolution {
    /// Serve this document.
    Serve(Bytes),
    /// Deny the request.
    Deny(Denial),
    /// Wait for a newer snapshot, and deny the request if none permits it in time.
    Wait(Denial),
}

/// Decides about a request of a pod from `source`.
pub(super) fn decide(
    snapshot: &Snapshot,
    who: &PodRef,
    source: IpAddr,
    ask: Ask<'_>,
    now: SystemTime,
) -> Resolution {
    let pod = match find(snapshot, who) {
        Ok(pod) => pod,
        // Another pod still has the address, until it is removed.
        Err(claimed) => return Resolution::Wait(claimed.into()),
    };
    let Some(pod) = pod else {
        if let PodRef::Uid(uid) = who
            && let Some(pod) = snapshot.gone(uid.as_str())
        {
            let pod = pod.to_owned();
            return Resolution::Deny(Denial::PodGone { pod });
        }
        return Resolution::Wait(if snapshot.complete() {
            Denial::UnknownPod {
                pod: who.to_string(),
            }
        } else {
            Denial::NoView
        });
    };
    if !pod.may_call_from(source) {
        // A recreated sandbox uses its new address before that is published.
        return Resolution::Wait(Denial::Address {
            pod: pod.to_string(),
            source_ip: source.to_canonical(),
        });
    }
    match &pod.outcome {
        Outcome::NoRole => Resolution::Deny(Denial::NoRole {
            pod: pod.to_string(),
            service_account: pod.facts.service_account.clone(),
        }),
        Outcome::Forbidden { role, reason } => Resolution::Deny(Denial::Forbidden {
            pod: pod.to_string(),
            role: role.clone(),
            reason: reason.clone(),
        }),
        Outcome::Undecided { awaiting } => Resolution::Wait(Denial::Undecided {
            pod: pod.to_string(),
            awaiting: awaiting.clone(),
        }),
        Outcome::Granted(grant) => match ask {
            Ask::Listing => Resolution::Serve(grant.listing.clone()),
            Ask::Credentials { role, .. } if !grant.is(role) => {
                Resolution::Deny(Denial::OtherRole {
                    pod: pod.to_string(),
                    asked: Denial::echo(role),
                    own: grant.role.name().to_owned(),
                })
            }
            Ask::Credentials { .. } | Ask::Own | Ask::Info => match (grant.valid(now), ask) {
                (Some(issued), Ask::Info) => Resolution::Serve(issued.info(&grant.role)),
                (Some(issued), Ask::Credentials { extended, .. }) if !extended => {
                    Resolution::Serve(issued.plain())
                }
                (Some(issued), Ask::Own) => Resolution::Serve(issued.container()),
                (Some(issued), _) => Resolution::Serve(issued.extended()),
                (None, _) => without_credentials(pod, grant),
            },
        },
    }
}

/// Returns the pod of a caller, if it is known.
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

fn without_credentials(pod: &Pod, grant: &Grant) -> Resolution {
    let (pod, role) = (pod.to_string(), grant.role.to_string());
    let error = grant.failure.as_ref().map(|failure| failure.error.clone());
    match (&grant.failure, &grant.issued) {
        (Some(failure), _) if failure.permanent => Resolution::Deny(Denial::Denied {
            pod,
            role,
            error: failure.error.clone(),
        }),
        (_, Some(issued)) => {
            let denial = Denial::expired(pod, role, issued.expiration(), error);
            match grant.failure {
                Some(_) => Resolution::Deny(denial),
                None => Resolution::Wait(denial),
            }
        }
        (Some(failure), None) => Resolution::Deny(Denial::Failing {
            pod,
            role,
            error: failure.error.clone(),
        }),
        (None, None) => Resolution::Wait(Denial::OnTheirWay { pod, role }),
    }
}
