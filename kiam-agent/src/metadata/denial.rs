//! Denied requests: a message for the pod's owner, a status that SDKs handle correctly, and a label
//! for metrics.
//!
//! 404: the pod has no role; final. 403: denied; final. 503: the client should retry. 401: the
//! client should send another token.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use jiff::Timestamp;

use super::passthrough::UpstreamError;
use crate::caller::Unidentified;
use crate::view::Claimed;

/// Maximum length of quoted text from the client, in characters.
const MAX_ECHO_CHARS: usize = 128;

/// Reason for a denied request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denial {
    #[error("{0}")]
    Unidentified(Unidentified),
    #[error("pod {pod} is not yet known as a running pod of this node with credentials; try again")]
    UnknownPod { pod: String },
    #[error("pod {pod} was deleted or has ended")]
    PodGone { pod: String },
    #[error(
        "the pods of this node are not yet known: no kiam-server has answered since the agent started; try again"
    )]
    NoView,
    #[error("{0}, so the caller is ambiguous; try again when the other pod is gone")]
    Claimed(#[from] Claimed),
    #[error(
        "this connection comes from {source_ip}, which is not among the known addresses of pod {pod}; try again"
    )]
    Address { pod: String, source_ip: IpAddr },
    #[error(
        "pod {pod} has no role; set the annotation iam.amazonaws.com/role on the pod or on its service account {service_account:?}"
    )]
    NoRole {
        pod: String,
        service_account: Box<str>,
    },
    #[error("pod {pod} may not use the role {role:?}: {reason}")]
    Forbidden {
        pod: String,
        role: Box<str>,
        reason: Box<str>,
    },
    #[error(
        "pod {pod} requested the role {asked:?}, but its role is {own}; request that one, or change the annotation iam.amazonaws.com/role"
    )]
    OtherRole {
        pod: String,
        asked: String,
        own: String,
    },
    #[error("the role of pod {pod} is not yet decided: waiting for {awaiting}; try again")]
    Undecided { pod: String, awaiting: Box<str> },
    #[error("the credentials of {role} for pod {pod} have not arrived yet; try again")]
    OnTheirWay { pod: String, role: String },
    #[error("the credentials of {role} for pod {pod} expired at {expired}, and newer ones have not arrived{}; try again", because(error.as_deref()))]
    Expired {
        pod: String,
        role: String,
        expired: String,
        error: Option<Box<str>>,
    },
    #[error("no credentials of {role} for pod {pod} at present: {error}; try again")]
    Failing {
        pod: String,
        role: String,
        error: Box<str>,
    },
    #[error(
        "AWS denies the role {role} to pod {pod}: {error}; correct the trust policy of the role, or the annotation iam.amazonaws.com/role"
    )]
    Denied {
        pod: String,
        role: String,
        error: Box<str>,
    },
    #[error(
        "{path:?} is not served: pods can read their own credentials, and the paths that --allow-route-regexp of the agent permits"
    )]
    Path { path: String },
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    #[error("the agent is not connected to a server: {0}")]
    Stream(String),
    #[error(
        "X-aws-ec2-metadata-token-ttl-seconds must be a number of seconds from 1 to {}",
        super::tokens::MAX_TTL.as_secs()
    )]
    TokenTtl,
    #[error("tokens are not given for forwarded requests (X-Forwarded-For)")]
    TokenForwarded,
    #[error("tokens are given only at /latest/api/token")]
    TokenVersion,
    #[error(
        "the token in X-aws-ec2-metadata-token is expired, or was given to another pod; get a new one with PUT /latest/api/token"
    )]
    BadToken,
    #[error(
        "the agent of this node requires IMDSv2 (--imds-v2=required); get a token with PUT /latest/api/token and send it"
    )]
    NoToken,
    #[error("{0}")]
    BadPath(super::path::PathError),
    #[error("the body of the request is longer than {limit} bytes; no request here needs a body")]
    LongBody { limit: usize },
    #[error(
        "the body of the request was incomplete after {}; no request here needs a body",
        kiam_common::duration::format(*.limit)
    )]
    LateBody { limit: Duration },
    #[error("the body of the request does not match its headers")]
    BadBody,
    #[error("method {method} is not allowed for this path; allowed: {allowed}")]
    Method {
        method: String,
        allowed: &'static str,
    },
}

impl Denial {
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
            Self::Unidentified(
                Unidentified::Unattested | Unidentified::Gone | Unidentified::Unknown,
            )
            | Self::Address { .. }
            | Self::UnknownPod { .. }
            | Self::NoView
            | Self::Claimed(_)
            | Self::Undecided { .. }
            | Self::OnTheirWay { .. }
            | Self::Expired { .. }
            | Self::Failing { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unidentified(Unidentified::NotAPod)
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
            // As in kiam's probe.
            Self::Stream(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the value of the label `reason`.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Unidentified(denial) => denial.as_label(),
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
