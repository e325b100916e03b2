//! AWS S3, as far as clients need it that speak to nothing else: one object in every bucket, for
//! whoever signs with keys that STS gave out.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::State;
use super::error::StsError;
use super::xml;
use crate::doubles::http::{self as server, Answer, Traffic};
use crate::sandbox::Guest;

/// The object's name.
const OBJECT: &str = "object";
const CONTENT: &str = "content\n";
const MODIFIED: &str = "Sat, 01 Aug 2026 00:00:00 GMT";
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An S3 that serves until it is dropped.
#[derive(Debug)]
pub struct S3 {
    _server: Guest,
}

impl S3 {
    pub(super) fn start(state: Arc<State>, listener: TcpListener) -> Result<Self> {
        let traffic = Arc::new(Traffic::default());
        let answer = move |request| {
            let answer = answer(&state, &request);
            async { Some(answer) as Answer }
        };
        let server = server::serve("s3", vec![listener], traffic, answer)?;
        Ok(Self { _server: server })
    }
}

fn answer(state: &State, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    match state.authenticate("s3", request) {
        Ok(caller) => {
            state.note_signed(request, &caller);
            found(request)
        }
        Err(error) => refused(&error),
    }
}

/// Resource at a path: `/BUCKET/OBJECT`.
fn found(request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let path = request.uri().path().trim_matches('/');
    let query = request.uri().query().unwrap_or_default();
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    match path.split_once('/') {
        _ if !read => error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", ""),
        None if query.starts_with("location") => text(&format!(
            "<LocationConstraint xmlns=\"{NAMESPACE}\">eu-west-1</LocationConstraint>"
        )),
        None => text(&format!(
            "<ListBucketResult xmlns=\"{NAMESPACE}\"><Name>{}</Name><Prefix></Prefix>\
             <KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>\
             </ListBucketResult>",
            xml::escape(path)
        )),
        Some((_, OBJECT)) => object(request),
        Some(_) => error(
            StatusCode::NOT_FOUND,
            "NoSuchKey",
            "The specified key does not exist.",
        ),
    }
}

fn object(request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let mut response = text(CONTENT);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    // Those who ask for a part ask from the first byte on, for more than there is.
    if let Some(range) = request.headers().get(header::RANGE) {
        let size = CONTENT.len();
        let from_start = range
            .to_str()
            .is_ok_and(|range| range.starts_with("bytes=0-"));
        if !from_start {
            return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "");
        }
        if let Ok(part) = format!("bytes 0-{}/{size}", size - 1).parse() {
            headers.insert(header::CONTENT_RANGE, part);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn text(body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_owned()));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/xml"),
        (header::ETAG, "\"f75b8179e4bbe7e2b4a074dcef62de95\""),
        (header::LAST_MODIFIED, MODIFIED),
        (header::ACCEPT_RANGES, "bytes"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refused(refused: &StsError) -> Response<Full<Bytes>> {
    let code = match refused {
        StsError::MissingAuthenticationToken => "AccessDenied",
        StsError::InvalidClientTokenId => "InvalidAccessKeyId",
        other => other.code(),
    };
    error(StatusCode::FORBIDDEN, code, &refused.to_string())
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let message = xml::escape(message);
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let mut response = text(&body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::doubles::sigv4::{self, Keys};
    use crate::doubles::sts::lock;

    fn get(path: &str) -> Request<Bytes> {
        let request = Request::get(path).header(header::HOST, "s3.test");
        request.body(Bytes::new()).unwrap()
    }

    fn signed(path: &str, keys: &Keys, service: &str) -> Request<Bytes> {
        let mut request = get(path);
        sigv4::add_signature(&mut request, keys, "eu-west-1", service, Timestamp::now());
        request
    }

    #[test]
    fn the_object_is_for_those_who_sign_for_s3_with_keys_of_sts() {
        let state = State::default();
        let keys = lock(&state.issued).server_keys();
        let status = |request| answer(&state, &request).status();
        assert_eq!(status(get("/bucket/object")), StatusCode::FORBIDDEN);
        let other = Keys {
            secret_key: "x".into(),
            ..keys.clone()
        };
        for (keys, service) in [(&other, "s3"), (&keys, "sts")] {
            let request = signed("/bucket/object", keys, service);
            assert_eq!(status(request), StatusCode::FORBIDDEN);
        }
        assert!(lock(&state.signed).is_empty());
        for (path, expected) in [
            ("/bucket/object", StatusCode::OK),
            ("/bucket/other", StatusCode::NOT_FOUND),
            ("/bucket/?list-type=2", StatusCode::OK),
        ] {
            assert_eq!(status(signed(path, &keys, "s3")), expected, "{path}");
        }
        assert_eq!(lock(&state.signed).len(), 3);
    }
}
