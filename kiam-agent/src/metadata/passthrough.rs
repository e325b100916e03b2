//! Paths of the node's own metadata service that an operator lets pods read, asked for by the
//! agent itself.
//!
//! Nothing of a pod's request goes there but the path, in one spelling: no header, no body, no
//! query, no method but `GET`. The agent has its own IMDSv2 session, so that this works where the
//! node requires one with a hop limit of 1. The node's credentials are never passed.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HOST, HeaderName, LAST_MODIFIED};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use regex::Regex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::headers::{TOKEN, TOKEN_TTL};
use kiam_common::http_client::{self, HttpError};

/// Where the real metadata service is.
pub(super) const METADATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
/// For one request there, with a new session where one is needed. The real service answers in
/// milliseconds, or as slowly as it throttles.
const LIMIT: Duration = Duration::from_secs(2);
/// Requests there at once; more wait as long as one may take. AWS throttles by packets per second.
const MAX_AT_ONCE: usize = 16;
/// The longest that is there are user data, of 16 KiB, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The longest path that is asked for, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// A session's length, and when it is renewed.
const SESSION: Duration = Duration::from_secs(21_600);
const RENEW_AFTER: Duration = Duration::from_secs(18_000);
/// Headers of the real answer that a pod gets too.
const RELAYED: [HeaderName; 3] = [CONTENT_TYPE, ETAG, LAST_MODIFIED];
/// Parts of paths below which credentials of the node's are, and what names its role.
const NEVER: [&str; 2] = ["iam", "identity-credentials"];

/// Asks the node's own metadata service.
pub(super) struct Upstream {
    address: SocketAddr,
    session: Mutex<Option<(HeaderValue, Instant)>>,
    places: Semaphore,
}

/// Why the node's own metadata service has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("the node's own metadata service does not answer: {0}")]
    Unreachable(String),
    #[error("the node's own metadata service gives the agent no session: it answers {0}")]
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
            places: Semaphore::const_new(MAX_AT_ONCE),
        }
    }

    /// What it says at a path, with those headers that a pod may see.
    pub(super) async fn get(&self, path: &str) -> Result<Response<Bytes>, UpstreamError> {
        let slow = |_elapsed| {
            let limit = kiam_common::duration::format(LIMIT);
            UpstreamError::Unreachable(format!("there was no answer within {limit}"))
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
        // Never closed.
        let _place = self.places.acquire().await;
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
        // The session was ended there before its time.
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
            .header(HOST, METADATA.ip().to_string())
            .header(name, value)
            .body(Empty::new())
            .expect("paths are checked for what a request can hold");
        http_client::send(self.address, request, MAX_BODY_BYTES).await
    }
}

/// The path to ask for, if what a client asks for may be passed: in the spelling that was checked.
/// `path` is canonical; `folder` whether it was written with a slash at its end.
pub(super) fn passed(allowed: &Regex, path: &str, folder: bool) -> Option<String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'.' | b'-' | b'_' | b':');
    // A percent sign that is left would be decoded a second time there.
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

    fn asks(expression: &str, path: &str) -> Option<String> {
        let allowed = allowed_routes(expression).unwrap();
        let folder = path.ends_with('/');
        passed(&allowed, &canonical(path).ok()?, folder)
    }

    #[test]
    fn paths_are_passed_that_the_whole_expression_matches() {
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
            // As a whole, unlike kiam's.
            ("placement", zone, None),
            ("/latest|/x", "/latest/user-data", None),
            ("^$", "/latest/user-data", None),
            // Whatever is said.
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
            let found = asks(expression, path);
            assert_eq!(found.as_deref(), expected, "{expression} {path}");
        }
        let long = format!("/{}", "x".repeat(MAX_PATH_BYTES + 1));
        assert_eq!(asks(".*", &long), None);
    }

    proptest! {
        #[test]
        fn what_is_passed_names_no_credentials_however_it_is_read(
            path in "(/|\\.|%2e|%2f|%25|;|\\\\|iam|IAM|%69am|meta-data|latest|identity-credentials|[a-z]){1,30}"
        ) {
            if let Some(path) = asks(".*", &format!("/{path}")) {
                let again = canonical(&path).unwrap();
                let spelled = again.to_ascii_lowercase();
                prop_assert!(!spelled.contains('%') && !spelled.contains('\\'), "{}", spelled);
                let harmless = |part: &str| part != ".." && !NEVER.contains(&part);
                prop_assert!(spelled.split('/').all(harmless), "{}", spelled);
            }
        }
    }
}
