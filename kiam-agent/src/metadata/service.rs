//! Handling of requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{HeaderValue, USER_AGENT};
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::answer::{Answer, Content, denied, ok};
use super::caller::Caller;
use super::connection::Rejected;
use super::decide::{Ask, Resolution, decide, find};
use super::denial::Denial;
use super::headers::{TOKEN, TOKEN_TTL};
use super::metrics::Handler;
use super::passthrough::passed;
use super::path::{Route, canonical, route};
use super::sdk::Sdk;
use super::tokens::MAX_TTL;
use crate::args::ImdsV2;
use crate::caller::{PodRef, Unidentified};
use crate::stream::ConnectionState;
use crate::view::PodFacts;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// An authenticated caller, and the remaining lifetime of the token that it sent.
#[derive(Debug, Clone, Copy)]
struct Authenticated<'a> {
    who: &'a PodRef,
    token_left: Option<u32>,
}

/// Result of a handler: the content, and the remaining lifetime of the token.
type Handled = Result<(Content, Option<u32>), Denial>;

impl Shared {
    /// Handles a request.
    pub(super) async fn answer(&self, caller: &Caller, request: &Parts) -> Answer {
        let began = Instant::now();
        let path = canonical(request.uri.path());
        let (handler, outcome) = match &path {
            Err(error) => (Handler::Proxy, Err(Denial::BadPath(*error))),
            Ok(path) => self.answer_path(caller, request, path).await,
        };
        self.conclude(caller, request, (handler, outcome), began)
    }

    /// Answers a request that cannot be read.
    pub(super) fn answer_denied(&self, caller: &Caller, request: &Parts, denial: Denial) -> Answer {
        let path = canonical(request.uri.path());
        let handler = path
            .as_deref()
            .map_or(Handler::Proxy, |path| self.handler(caller, &route(path)));
        self.conclude(caller, request, (handler, Err(denial)), Instant::now())
    }

    fn conclude(
        &self,
        caller: &Caller,
        request: &Parts,
        (handler, outcome): (Handler, Handled),
        began: Instant,
    ) -> Answer {
        let answer = match outcome {
            Ok((content, token_left)) => {
                let mut answer = ok(content);
                if let Some(left) = token_left {
                    answer.headers_mut().insert(TOKEN_TTL, left.into());
                }
                answer
            }
            Err(denial) => {
                self.metrics.denied(handler, denial.reason());
                self.log(caller, request, &denial);
                denied(&denial)
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.answered(handler, answer.status(), seconds);
        answer
    }

    /// Returns the part of the service that handles a route.
    fn handler(&self, caller: &Caller, route: &Route<'_>) -> Handler {
        match route {
            Route::Token { .. } => Handler::Token,
            Route::Listing => Handler::RoleName,
            Route::Info => Handler::Info,
            Route::Credentials { .. } => Handler::Credentials,
            Route::Extended { .. } => Handler::Extended,
            Route::Container if self.settings.container => Handler::Container,
            Route::Ping | Route::Health if caller.is_node() => Handler::Health,
            Route::Container | Route::Ping | Route::Health | Route::Other => Handler::Proxy,
        }
    }

    async fn answer_path(
        &self,
        caller: &Caller,
        request: &Parts,
        path: &str,
    ) -> (Handler, Handled) {
        let without_lifetime = |content| (content, None);
        let route = route(path);
        let handler = self.handler(caller, &route);
        let ask = match (handler, route) {
            (Handler::Proxy, _) | (_, Route::Other) => {
                return (handler, self.pass(caller, request, path).await);
            }
            (_, Route::Token { latest }) => {
                let token = self.token(caller, request, latest);
                return (handler, token.map(without_lifetime));
            }
            (_, Route::Ping) => {
                let pong = Bytes::from_static(b"pong");
                return (handler, Ok(without_lifetime(Content::Text(pong))));
            }
            (_, Route::Health) => {
                return (handler, self.health(request).await.map(without_lifetime));
            }
            (_, Route::Container) => Ask::Own,
            (_, Route::Listing) => Ask::Listing,
            (_, Route::Info) => Ask::Info,
            (_, Route::Credentials { role }) => {
                let extended = false;
                Ask::Credentials { role, extended }
            }
            (_, Route::Extended { role }) => {
                let extended = true;
                Ask::Credentials { role, extended }
            }
        };
        if request.method != Method::GET && request.method != Method::HEAD {
            return (handler, Err(wrong_method(request, "GET, HEAD")));
        }
        let authenticated = match handler {
            // SDKs in containers use no tokens.
            Handler::Container => {
                caller
                    .who
                    .as_ref()
                    .map_err(unidentified)
                    .map(|who| Authenticated {
                        who,
                        token_left: None,
                    })
            }
            _ => self.check_token(caller, request),
        };
        let Authenticated { who, token_left } = match authenticated {
            Ok(authenticated) => authenticated,
            Err(denial) => return (handler, Err(denial)),
        };
        if self.settings.legacy_redirects
            && matches!(ask, Ask::Listing)
            && let Some(location) = with_slash(request.uri.path())
        {
            return (handler, Ok((Content::Redirect(location), token_left)));
        }
        let content = match handler {
            Handler::Container => Content::Json,
            _ => Content::Text,
        };
        let asked = self.ask(who, caller.source, ask).await;
        (handler, asked.map(|body| (content(body), token_left)))
    }

    /// Passes a request on to the node's metadata service, if its path is permitted.
    async fn pass(&self, caller: &Caller, request: &Parts, path: &str) -> Handled {
        let Authenticated { token_left, .. } = self.check_token(caller, request)?;
        let refused = || Denial::Path {
            path: format!("/{}", Denial::echo(path)),
        };
        let allowed = self.settings.allow_routes.as_ref().ok_or_else(refused)?;
        let folder = request.uri.path().ends_with('/');
        let path = passed(allowed, path, folder).ok_or_else(refused)?;
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(wrong_method(request, "GET, HEAD"));
        }
        let answer = self.upstream.get(&path).await?;
        Ok((Content::Relayed(answer), token_left))
    }

    /// Answers kiam's probe: the node's metadata service answers; with `?deep=1`, the agent is also
    /// connected to a server.
    async fn health(&self, request: &Parts) -> Result<Content, Denial> {
        let query = request.uri.query().unwrap_or_default();
        let deep = |part: &str| {
            part.strip_prefix("deep=")
                .is_some_and(|some| !some.is_empty())
        };
        if query.split('&').any(deep) {
            let connection = self.connection.borrow().clone();
            match connection {
                ConnectionState::Synced { .. } => {}
                ConnectionState::Starting => {
                    return Err(Denial::Stream("it has just started".to_owned()));
                }
                ConnectionState::Disconnected { why, .. } => return Err(Denial::Stream(why)),
            }
        }
        let answer = self.upstream.get("/latest/meta-data/instance-id").await?;
        Ok(Content::Relayed(answer))
    }

    /// Gives a token of IMDSv2. Never waits: SDKs fall back to IMDSv1 on a slow answer.
    fn token(&self, caller: &Caller, request: &Parts, latest: bool) -> Result<Content, Denial> {
        if request.method != Method::PUT {
            return Err(wrong_method(request, "PUT"));
        }
        if !latest {
            return Err(Denial::TokenVersion);
        }
        if request.headers.contains_key(FORWARDED_FOR) {
            return Err(Denial::TokenForwarded);
        }
        let who = caller.who.as_ref().map_err(unidentified)?;
        let ttl = request
            .headers
            .get(TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok())
            .filter(|ttl| (1..=MAX_TTL.as_secs()).contains(&u64::from(*ttl)))
            .ok_or(Denial::TokenTtl)?;
        let life = Duration::from_secs(ttl.into());
        let token = self.tokens.issue(who, life, (self.clock)());
        Ok(Content::Token(token, ttl))
    }

    /// Checks the token, if one is sent or required.
    fn check_token<'a>(
        &self,
        caller: &'a Caller,
        request: &Parts,
    ) -> Result<Authenticated<'a>, Denial> {
        let who = caller.who.as_ref().map_err(unidentified)?;
        match request.headers.get(TOKEN) {
            Some(token) => {
                self.metrics.with_token.inc();
                let left = self.tokens.verify(token.as_bytes(), who, (self.clock)());
                let token_left = Some(left.ok_or(Denial::BadToken)?);
                Ok(Authenticated { who, token_left })
            }
            None => {
                self.metrics.without_token.inc();
                let client = request.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
                self.v1_users.count(who, Sdk::of(client));
                let token_left = None;
                match self.settings.imds_v2 {
                    ImdsV2::Optional => Ok(Authenticated { who, token_left }),
                    ImdsV2::Required => Err(Denial::NoToken),
                }
            }
        }
    }

    /// Decides by the newest snapshot, and waits for one that serves the request if necessary.
    async fn ask(&self, who: &PodRef, source: IpAddr, ask: Ask<'_>) -> Result<Bytes, Denial> {
        let look = || decide(&self.view.load(), who, source, ask, (self.clock)());
        match look() {
            Resolution::Serve(body) => return Ok(body),
            Resolution::Deny(denial) => return Err(denial),
            Resolution::Wait(_) => {}
        }
        let began = Instant::now();
        let deadline = began + self.settings.pod_wait;
        let mut changes = self.view.changes();
        loop {
            // Decided again after the subscription, so that no change is missed.
            let denial = match look() {
                Resolution::Serve(body) => {
                    self.metrics.waits.observe(began.elapsed().as_secs_f64());
                    return Ok(body);
                }
                Resolution::Deny(denial) => {
                    self.metrics.waits.observe(began.elapsed().as_secs_f64());
                    return Err(denial);
                }
                Resolution::Wait(denial) => denial,
            };
            if !matches!(timeout_at(deadline, changes.next()).await, Ok(true)) {
                self.metrics.waits.observe(began.elapsed().as_secs_f64());
                self.metrics.waits_over.inc();
                return Err(denial);
            }
        }
    }

    /// Counts and logs a connection that was closed without a response.
    pub(super) fn reject(&self, caller: &Caller, rejected: Rejected) {
        let (who, limit) = (caller.who.as_ref().ok(), rejected.as_label());
        let counter = &self.metrics.connections_refused;
        counter.with_label_values(&[limit]).inc();
        let Some(held_back) = self.denial_log.should_log(who, limit, Instant::now()) else {
            return;
        };
        let facts = self.facts(who);
        let pod = facts.as_deref();
        tracing::warn!(
            pod.namespace = pod.map(|pod| &*pod.namespace),
            pod.name = pod.map(|pod| &*pod.name),
            addr = %caller.source,
            limit,
            held_back,
            "closed a connection without a response: {rejected}"
        );
    }

    fn facts(&self, who: Option<&PodRef>) -> Option<Arc<PodFacts>> {
        let snapshot = self.view.load();
        let pod = find(&snapshot, who?).ok().flatten()?;
        Some(Arc::clone(&pod.facts))
    }

    fn log(&self, caller: &Caller, request: &Parts, denial: &Denial) {
        let (who, reason) = (caller.who.as_ref().ok(), denial.reason());
        let Some(held_back) = self.denial_log.should_log(who, reason, Instant::now()) else {
            return;
        };
        let status = denial.status().as_u16();
        let (addr, method) = (caller.source, &request.method);
        let facts = self.facts(who);
        let pod = facts.as_deref();
        tracing::info!(
            pod.namespace = pod.map(|pod| &*pod.namespace),
            pod.name = pod.map(|pod| &*pod.name),
            %addr,
            %method,
            path = Denial::echo(request.uri.path()),
            status,
            reason,
            held_back,
            "denied: {denial}"
        );
    }
}

fn unidentified(reason: &Unidentified) -> Denial {
    Denial::Unidentified(reason.clone())
}

fn wrong_method(request: &Parts, allowed: &'static str) -> Denial {
    Denial::Method {
        method: Denial::echo(request.method.as_str()),
        allowed,
    }
}

/// Returns the path with a trailing slash, if it has none.
fn with_slash(path: &str) -> Option<HeaderValue> {
    if path.ends_with('/') {
        return None;
    }
    HeaderValue::try_from(format!("{path}/")).ok()
}
