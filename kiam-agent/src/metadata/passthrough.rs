//! Requests to the node's metadata service for paths that operators let pods read.
//!
//! The agent makes the request. Of a pod's request only the path is passed on, in canonical
//! spelling: no header, no body, no query, no method but `GET`. The agent has its own session of
//! IMDSv2, so that this works with a hop limit of 1. The node's credentials are never passed on.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HOST, HeaderName, LAST_MODIFIED};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use kiam_common::http_client::{self, HttpError};
use kiam_common::metadata_address::METADATA_SERVICE;
use regex::Regex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::headers::{TOKEN, TOKEN_TTL};

/// Timeout of a request, with a new session if one is needed. The real service answers in
/// milliseconds, unless it throttles.
const LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of concurrent requests; others wait. AWS throttles by packets per second.
const MAX_AT_ONCE: usize = 16;
/// Maximum size of a document, in bytes; the largest, user data, has 16 KiB.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum length of a path, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Lifetime of a session, and when it is renewed.
const SESSION: Duration = Duration::from_secs(21_600);
const RENEW_AFTER: Duration = Duration::from_secs(18_000);
/// Headers of the response that are passed on.
const RELAYED: [HeaderName; 3] = [CONTENT_TYPE, ETAG, LAST_MODIFIED];
/// Path segments of the node's credentials, and of what names the node's role.
const NEVER: [&str; 2] = ["iam", "identity-credentials"];

/// Client of the node's metadata service.
pub(super) struct Upstream {
    address: SocketAddr,
    session: Mutex<Option<(HeaderValue, Instant)>>,
    permits: Semaphore,
}

/// Error of a request to the node's metadata service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("the node's metadata service does not answer: {0}")]
    Unreachable(String),
    #[error("the node's metadata service refuses a session to the agent: it answers {0}")]
    NoSession(StatusCode),
}

impl From<HttpError> for UpstreamError {
    fn from(error: HttpError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    pub(super) const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            session: Mutex::new(None),
            permits: Semaphore::const_new(MAX_AT_ONCE),
        }
    }

    /// Requests a path, and returns the response with the headers that pods may see.
    pub(super) async fn get(&self, path: &str) -> Result<Response<Bytes>, UpstreamError> {
        let slow = |_elapsed| {
            let limit = kiam_common::duration::format(LIMIT);
            UpstreamError::Unreachable(format!("no answer within {limit}"))
        };
        let answer = timeout(LIMIT, self.ask(path)).await.map_err(slow)??;
        let (mut head, body) = answer.into_parts();
        let mut relayed = http::HeaderMap::new();
        for name in RELAYED {
            if let Some(value) = head.headers.remove(&name) {
                relayed.insert(name, value);
            }
        }
        head.headers = relayed;
        Ok(Response::from_parts(head, body))
    }

    async fn ask(&self, path: &str) -> Result<Response<Bytes>, UpstreamError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let kept = self.kept();
        let known = kept.is_some();
        let session = match kept {
            Some(session) => session,
            None => self.begin().await?,
        };
        let answer = self.send("GET", path, (TOKEN, session)).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !known {
            return Ok(answer);
        }
        // The service ended the session early.
        let session = self.begin().await?;
        Ok(self.send("GET", path, (TOKEN, session)).await?)
    }

    fn kept(&self) -> Option<HeaderValue> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, since) = session.as_ref()?;
        (since.elapsed() < RENEW_AFTER).then(|| token.clone())
    }

    async fn begin(&self) -> Result<HeaderValue, UpstreamError> {
        let life = HeaderValue::from(SESSION.as_secs());
        let path = "/latest/api/token";
        let answer = self.send("PUT", path, (TOKEN_TTL, life)).await?;
        let token = HeaderValue::from_bytes(answer.body());
        let (StatusCode::OK, Ok(mut token)) = (answer.status(), token) else {
            return Err(UpstreamError::NoSession(answer.status()));
        };
        token.set_sensitive(true);
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((token.clone(), Instant::now()));
        Ok(token)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        (name, value): (&str, HeaderValue),
    ) -> Result<Response<Bytes>, HttpError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, METADATA_SERVICE.ip().to_string())
            .header(name, value)
            .body(Empty::new())
            .expect("paths are checked for what a request can hold");
        http_client::send(self.address, request, MAX_BODY_BYTES).await
    }
}

/// Returns the path to request if it may be passed on. `path` is canonical; `folder` tells whether
/// it was written with a trailing slash.
pub(super) fn passed(allowed: &Regex, path: &str, folder: bool) -> Option<String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'.' | b'-' | b'_' | b':');
    // The service would decode a remaining percent sign a second time.
    if path.len() > MAX_PATH_BYTES || !path.bytes().all(plain) {
        return None;
    }
    let secret = |part: &str| NEVER.iter().any(|never| part.eq_ignore_ascii_case(never));
    let mut parts = path.split('/');
    if parts.clone().any(secret) || parts.nth(1) == Some("api") {
        return None;
    }
    let path = format!("/{path}");
    let written = if folder && path != "/" {
        format!("{path}/")
    } else {
        path.clone()
    };
    (allowed.is_match(&path) || allowed.is_match(&written)).then_some(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::args::allowed_routes;
    use crate::metadata::path::canonical;

    fn pass(expression: &str, path: &str) -> Option<String> {
        let allowed = allowed_routes(expression).unwrap();
        let folder = path.ends_with('/');
        passed(&allowed, &canonical(path).ok()?, folder)
    }

    #[test]
    fn paths_that_match_as_a_whole_are_passed_on() {
        let zone = "/latest/meta-data/placement/availability-zone";
        for (expression, path, expected) in [
            (zone, zone, Some(zone)),
            (
                zone,
                "//latest/meta-data/x/../placement/availability-zone",
                Some(zone),
            ),
            ("/latest/meta-data/placement/.*", zone, Some(zone)),
            (
                "/latest/meta-data/?",
                "/latest/meta-data/",
                Some("/latest/meta-data/"),
            ),
            (".*", "/", Some("/")),
            (".*", "/latest/user-data", Some("/latest/user-data")),
            ("(?i).*/PLACEMENT/.*", zone, Some(zone)),
            // Unlike in kiam, the whole path must match.
            ("placement", zone, None),
            ("/latest|/x", "/latest/user-data", None),
            ("^$", "/latest/user-data", None),
            // Never passed on, whatever the expression is.
            (".*", "/latest/meta-data/iam/info", None),
            (".*", "/latest/meta-data/IAM/security-credentials/x", None),
            (
                ".*",
                "/latest/meta-data/identity-credentials/ec2/info",
                None,
            ),
            (".*", "/latest/meta-data/%69am/info", None),
            (".*", "/latest/meta-data/%2569am/info", None),
            (".*", "/latest/meta-data/x?y", None),
            (".*", "/latest/meta-data/x%3fy", None),
            (".*", "/latest/meta-data/x%23y", None),
            (".*", "/latest/meta-data/a b", None),
            (".*", "/latest/meta-data/x\\..\\iam", None),
            (".*", "/latest/api/token", None),
        ] {
            let found = pass(expression, path);
            assert_eq!(found.as_deref(), expected, "{expression} {path}");
        }
        let long = format!("/{}", "x".repeat(MAX_PATH_BYTES + 1));
        assert_eq!(pass(".*", &long), None);
    }

    proptest! {
        #[test]
        fn paths_that_are_passed_on_never_lead_to_credentials(
            path in "(/|\\.|%2e|%2f|%25|;|\\\\|iam|IAM|%69am|meta-data|latest|identity-credentials|[a-z]){1,30}"
        ) {
            if let Some(path) = pass(".*", &format!("/{path}")) {
                let again = canonical(&path).unwrap();
                let spelled = again.to_ascii_lowercase();
                prop_assert!(!spelled.contains('%') && !spelled.contains('\\'), "{}", spelled);
                let harmless = |part: &str| part != ".." && !NEVER.contains(&part);
                prop_assert!(spelled.split('/').all(harmless), "{}", spelled);
            }
        }
    }
}
