//! Answers as the real service writes them: each with the end of its connection.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, SERVER,
};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::headers::TOKEN_TTL;
use super::refusal::Refusal;

/// What the service answers.
pub(super) type Answer = Response<Full<Bytes>>;

/// What a request is answered when it is not refused.
pub(super) enum Reply {
    /// A document.
    Text(Bytes),
    /// A document, as containers' SDKs get theirs.
    Json(Bytes),
    /// A token of IMDSv2, and for how long it is good, in seconds.
    Token(Bytes, u32),
    /// The same path with a slash at its end.
    Redirect(HeaderValue),
    /// What the node's own service says.
    Relayed(Response<Bytes>),
}

pub(super) fn ok(reply: Reply) -> Answer {
    match reply {
        Reply::Text(body) => document(body),
        Reply::Json(body) => {
            let mut answer = document(body);
            let kind = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        Reply::Token(body, ttl) => {
            let mut answer = with(StatusCode::OK, body);
            answer.headers_mut().insert(TOKEN_TTL, ttl.into());
            answer
        }
        Reply::Redirect(location) => {
            let mut answer = with(StatusCode::MOVED_PERMANENTLY, Bytes::new());
            answer.headers_mut().insert(LOCATION, location);
            answer
        }
        Reply::Relayed(answer) => {
            let (head, body) = answer.into_parts();
            let mut answer = with(head.status, body);
            answer.headers_mut().extend(head.headers);
            answer
        }
    }
}

pub(super) fn refused(refusal: &Refusal) -> Answer {
    let mut answer = with(refusal.status(), format!("{refusal}\n").into());
    let headers = answer.headers_mut();
    match refusal {
        Refusal::Method { allowed, .. } => {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        _ if refusal.status() == StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    answer
}

/// A document, of which no part can be asked for.
fn document(body: Bytes) -> Answer {
    let mut answer = with(StatusCode::OK, body);
    let headers = answer.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    answer
}

/// Headers as the real service sends them, with the end of the connection.
fn with(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
