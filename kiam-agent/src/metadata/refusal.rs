//! Why a request is not answered with what it asks for: one line for the pod's owner, a status
//! that SDKs treat rightly, a label for a metric.
//!
//! 404: the pod has no role, and that is final. 403: refused, and final. 503: try again.
//! 401: with another token.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use jiff::Timestamp;

use super::passthrough::UpstreamError;
use crate::caller;
use crate::view::Claimed;

/// What is repeated of a text that the client made up, in characters.
const MAX_ECHO_CHARS: usize = 128;

/// A request that is not answered with what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Caller(caller::Refusal),
    #[error(
        "pod {pod} is not known yet as a running pod of this node that has credentials; try again"
    )]
    UnknownPod { pod: String },
    #[error("pod {pod} has gone: it was deleted, or has ended")]
    PodGone { pod: String },
    #[error(
        "the node's pods are not known yet: the agent has not heard from a kiam-server since it started; try again"
    )]
    NoView,
    #[error("{0}, so that the agent cannot tell which one calls; try again when the other is gone")]
    Claimed(#[from] Claimed),
    #[error(
        "this connection comes from {source_ip}, which is none of the addresses of pod {pod} that are known; try again"
    )]
    Address { pod: String, source_ip: IpAddr },
    #[error(
        "pod {pod} has no role: name one in the annotation iam.amazonaws.com/role of the pod or of its service account {service_account:?}"
    )]
    NoRole {
        pod: String,
        service_account: Box<str>,
    },
    #[error("pod {pod} may not have the role {role:?}: {reason}")]
    Forbidden {
        pod: String,
        role: Box<str>,
        reason: Box<str>,
    },
    #[error(
        "pod {pod} asked for the role {asked:?}, and its own is {own}: ask for that, or change the annotation iam.amazonaws.com/role"
    )]
    OtherRole {
        pod: String,
        asked: String,
        own: String,
    },
    #[error("it is not decided yet which role pod {pod} may have, awaiting {awaiting}; try again")]
    Undecided { pod: String, awaiting: Box<str> },
    #[error("the credentials of {role} for pod {pod} are still on their way; try again")]
    OnTheirWay { pod: String, role: String },
    #[error("the credentials of {role} for pod {pod} expired at {expired}, and newer ones have not come{}; try again", because(error.as_deref()))]
    Expired {
        pod: String,
        role: String,
        expired: String,
        error: Option<Box<str>>,
    },
    #[error("there are no credentials of {role} for pod {pod} for now: {error}; try again")]
    Failing {
        pod: String,
        role: String,
        error: Box<str>,
    },
    #[error(
        "AWS refuses the role {role} of pod {pod}: {error}; correct the role's trust policy, or the annotation iam.amazonaws.com/role"
    )]
    Denied {
        pod: String,
        role: String,
        error: Box<str>,
    },
    #[error(
        "there is no {path:?} here: of the metadata service pods get their own credentials, and what the agent's --allow-route-regexp lets through"
    )]
    Path { path: String },
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    #[error("the server does not keep this agent informed: {0}")]
    Stream(String),
    #[error(
        "X-aws-ec2-metadata-token-ttl-seconds must be there, and a number of seconds from 1 to {}",
        super::tokens::MAX_TTL.as_secs()
    )]
    TokenTtl,
    #[error("a token is given to a pod itself, and this request was forwarded (X-Forwarded-For)")]
    TokenForwarded,
    #[error("tokens are given at /latest/api/token only")]
    TokenVersion,
    #[error(
        "the token in X-aws-ec2-metadata-token is not this pod's, or has expired: PUT /latest/api/token gives a new one"
    )]
    BadToken,
    #[error(
        "this node's agent wants IMDSv2 (--imds-v2=required): PUT /latest/api/token gives the token to send along"
    )]
    NoToken,
    #[error("{0}")]
    BadPath(super::path::PathError),
    #[error("the request's body is longer than {limit} bytes, and no request here needs one")]
    LongBody { limit: usize },
    #[error(
        "the request's body was not whole in {}, and no request here needs one",
        kiam_common::duration::format(*.limit)
    )]
    LateBody { limit: Duration },
    #[error("the request's body is not what its headers say")]
    BadBody,
    #[error("{method} is no method for this path; allowed: {allowed}")]
    Method {
        method: String,
        allowed: &'static str,
    },
}

impl Refusal {
    pub(super) fn echo(text: &str) -> String {
        let mut echo: String = text.chars().take(MAX_ECHO_CHARS).collect();
        if echo.len() < text.len() {
            echo.push('…');
        }
        echo
    }

    pub(super) fn expired(
        pod: String,
        role: String,
        at: SystemTime,
        error: Option<Box<str>>,
    ) -> Self {
        let expired = Timestamp::try_from(at)
            .map_or_else(|_far| "an unknown time".into(), |at| at.to_string());
        Self::Expired {
            pod,
            role,
            expired,
            error,
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Caller(
                caller::Refusal::Unattested | caller::Refusal::Gone | caller::Refusal::Unknown,
            )
            | Self::Address { .. }
            | Self::UnknownPod { .. }
            | Self::NoView
            | Self::Claimed(_)
            | Self::Undecided { .. }
            | Self::OnTheirWay { .. }
            | Self::Expired { .. }
            | Self::Failing { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Caller(caller::Refusal::NotAPod)
            | Self::PodGone { .. }
            | Self::Forbidden { .. }
            | Self::OtherRole { .. }
            | Self::Denied { .. }
            | Self::TokenForwarded
            | Self::TokenVersion => StatusCode::FORBIDDEN,
            Self::NoRole { .. } | Self::Path { .. } => StatusCode::NOT_FOUND,
            Self::BadPath(_) | Self::TokenTtl | Self::BadBody => StatusCode::BAD_REQUEST,
            Self::LateBody { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::LongBody { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BadToken | Self::NoToken => StatusCode::UNAUTHORIZED,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            // As kiam's probe had it.
            Self::Stream(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A label for a metric.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Caller(refusal) => refusal.as_label(),
            Self::UnknownPod { .. } => "unknown_pod",
            Self::NoView => "no_view",
            Self::Claimed(_) => "address_claimed",
            Self::Address { .. } => "address_mismatch",
            Self::NoRole { .. } => "no_role",
            Self::Forbidden { .. } => "forbidden",
            Self::OtherRole { .. } => "other_role",
            Self::Undecided { .. } => "undecided",
            Self::OnTheirWay { .. } => "awaited",
            Self::Expired { .. } => "expired",
            Self::Failing { .. } => "failing",
            Self::Denied { .. } => "denied_by_aws",
            Self::Path { .. } => "path",
            Self::BadPath(_) => "bad_path",
            Self::TokenTtl => "token_ttl",
            Self::TokenForwarded => "token_forwarded",
            Self::TokenVersion => "token_version",
            Self::BadToken => "token_bad",
            Self::NoToken => "token_missing",
            Self::Method { .. } => "method",
            Self::LongBody { .. } | Self::LateBody { .. } | Self::BadBody => "body",
            Self::PodGone { .. } => "pod_gone",
            Self::Upstream(_) => "upstream",
            Self::Stream(_) => "stream",
        }
    }
}

fn because(error: Option<&str>) -> String {
    error.map_or_else(String::new, |error| format!(" ({error})"))
}
