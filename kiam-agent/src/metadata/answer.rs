//! Responses in the form of the real service: each ends its connection.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, SERVER,
};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::denial::Denial;
use super::headers::TOKEN_TTL;

/// Response of the service.
pub(super) type Answer = Response<Full<Bytes>>;

/// Content of a successful response.
pub(super) enum Content {
    /// A document in plain text.
    Text(Bytes),
    /// A document in JSON, for SDKs in containers.
    Json(Bytes),
    /// A token of IMDSv2, and its lifetime in seconds.
    Token(Bytes, u32),
    /// A redirection to the same path with a trailing slash.
    Redirect(HeaderValue),
    /// A response of the node's metadata service.
    Relayed(Response<Bytes>),
}

pub(super) fn ok(content: Content) -> Answer {
    match content {
        Content::Text(body) => document(body),
        Content::Json(body) => {
            let mut answer = document(body);
            let kind = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        Content::Token(body, ttl) => {
            let mut answer = with(StatusCode::OK, body);
            answer.headers_mut().insert(TOKEN_TTL, ttl.into());
            answer
        }
        Content::Redirect(location) => {
            let mut answer = with(StatusCode::MOVED_PERMANENTLY, Bytes::new());
            answer.headers_mut().insert(LOCATION, location);
            answer
        }
        Content::Relayed(answer) => {
            let (head, body) = answer.into_parts();
            let mut answer = with(head.status, body);
            answer.headers_mut().extend(head.headers);
            answer
        }
    }
}

pub(super) fn denied(denial: &Denial) -> Answer {
    let mut answer = with(denial.status(), format!("{denial}\n").into());
    let headers = answer.headers_mut();
    match denial {
        Denial::Method { allowed, .. } => {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        _ if denial.status() == StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    answer
}

/// Builds a document; ranges of it cannot be requested.
fn document(body: Bytes) -> Answer {
    let mut answer = with(StatusCode::OK, body);
    let headers = answer.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    answer
}

/// Builds a response with the headers of the real service, and the end of the connection.
fn with(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
