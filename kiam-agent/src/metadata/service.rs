//! From a request to its answer.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, SERVER, USER_AGENT};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::decide::{Ask, Verdict, decide, find};
use super::metrics::Handler;
use super::passthrough::passed;
use super::path::{Route, canonical, route};
use super::refusal::Refusal;
use super::sdk::Sdk;
use super::tokens::MAX_TTL;
use crate::args::ImdsV2;
use crate::caller::{self, PodRef};
use crate::stream::Standing;

/// What the service answers.
pub(super) type Answer = Response<Full<Bytes>>;

pub(super) const TOKEN: &str = "x-aws-ec2-metadata-token";
pub(super) const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const FORWARDED_FOR: &str = "x-forwarded-for";

/// What a request is answered when it is not refused.
enum Reply {
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

/// Who is at the other end of a connection: asked once, when it was accepted.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) who: Result<PodRef, caller::Refusal>,
    pub(super) source: IpAddr,
    /// Whether it comes from the agent's own address: from the node itself.
    pub(super) on_node: bool,
}

impl Caller {
    /// Whether it is a probe of the node's, the kubelet's for one: of the node itself, and no pod's.
    const fn is_node(&self) -> bool {
        use caller::Refusal::{NotAPod, Unattested};
        let no_pod = matches!(self.who, Err(Unattested | NotAPod) | Ok(PodRef::Address(_)));
        self.on_node && no_pod
    }
}

impl Shared {
    /// Answers one request.
    pub(super) async fn answer(&self, caller: &Caller, request: &Parts) -> Answer {
        let began = Instant::now();
        let path = canonical(request.uri.path());
        let (handler, outcome) = match &path {
            Err(error) => (Handler::Proxy, Err(Refusal::BadPath(*error))),
            Ok(path) => self.answer_path(caller, request, path).await,
        };
        let answer = match outcome {
            Ok(reply) => ok(reply),
            Err(refusal) => {
                self.metrics.refused(handler, refusal.reason());
                self.log(caller, request, &refusal);
                refused(&refusal)
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.answered(handler, answer.status(), seconds);
        answer
    }

    async fn answer_path(
        &self,
        caller: &Caller,
        request: &Parts,
        path: &str,
    ) -> (Handler, Result<Reply, Refusal>) {
        let (handler, ask) = match route(path) {
            Route::Token { latest } => {
                return (Handler::Token, self.token(caller, request, latest));
            }
            Route::Container if self.settings.container => (Handler::Container, Ask::Own),
            Route::Ping if caller.is_node() => {
                let pong = Bytes::from_static(b"pong");
                return (Handler::Health, Ok(Reply::Text(pong)));
            }
            Route::Health if caller.is_node() => {
                return (Handler::Health, self.health(request).await);
            }
            Route::Other | Route::Container | Route::Ping | Route::Health => {
                return (Handler::Proxy, self.pass(caller, request, path).await);
            }
            Route::Listing => (Handler::RoleName, Ask::Listing),
            Route::Info => (Handler::Info, Ask::Info),
            Route::Credentials { role } => {
                let extended = false;
                (Handler::Credentials, Ask::Credentials { role, extended })
            }
            Route::Extended { role } => {
                let extended = true;
                (Handler::Extended, Ask::Credentials { role, extended })
            }
        };
        if request.method != Method::GET && request.method != Method::HEAD {
            return (handler, Err(wrong_method(request, "GET, HEAD")));
        }
        let who = match handler {
            // There are no tokens where containers ask.
            Handler::Container => caller.who.as_ref().map_err(known),
            _ => self.check_token(caller, request),
        };
        let who = match who {
            Ok(who) => who,
            Err(refusal) => return (handler, Err(refusal)),
        };
        if self.settings.legacy_redirects
            && matches!(ask, Ask::Listing)
            && let Some(location) = with_slash(request.uri.path())
        {
            return (handler, Ok(Reply::Redirect(location)));
        }
        let reply = match handler {
            Handler::Container => Reply::Json,
            _ => Reply::Text,
        };
        (handler, self.ask(who, caller.source, ask).await.map(reply))
    }

    /// Answers with what the node's own service says, where that is let through.
    async fn pass(&self, caller: &Caller, request: &Parts, path: &str) -> Result<Reply, Refusal> {
        self.check_token(caller, request)?;
        let refused = || Refusal::Path {
            path: format!("/{}", Refusal::echo(path)),
        };
        let allowed = self.settings.allow_routes.as_ref().ok_or_else(refused)?;
        let folder = request.uri.path().ends_with('/');
        let path = passed(allowed, path, folder).ok_or_else(refused)?;
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(wrong_method(request, "GET, HEAD"));
        }
        Ok(Reply::Relayed(self.upstream.get(&path).await?))
    }

    /// Kiam's probe: the node's own service answers; with `?deep=1`, a server informs this agent too.
    async fn health(&self, request: &Parts) -> Result<Reply, Refusal> {
        let query = request.uri.query().unwrap_or_default();
        let deep = |part: &str| {
            part.strip_prefix("deep=")
                .is_some_and(|some| !some.is_empty())
        };
        if query.split('&').any(deep) {
            let standing = self.standing.borrow().clone();
            match standing {
                Standing::Synced { .. } => {}
                Standing::Begun => return Err(Refusal::Stream("it has just started".to_owned())),
                Standing::Broken { why, .. } => return Err(Refusal::Stream(why)),
            }
        }
        let answer = self.upstream.get("/latest/meta-data/instance-id").await?;
        Ok(Reply::Relayed(answer))
    }

    /// Gives a token of IMDSv2. Waits for nothing: a slow answer makes SDKs fall back to IMDSv1.
    fn token(&self, caller: &Caller, request: &Parts, latest: bool) -> Result<Reply, Refusal> {
        if request.method != Method::PUT {
            return Err(wrong_method(request, "PUT"));
        }
        if !latest {
            return Err(Refusal::TokenVersion);
        }
        if request.headers.contains_key(FORWARDED_FOR) {
            return Err(Refusal::TokenForwarded);
        }
        let who = caller.who.as_ref().map_err(known)?;
        let ttl = request
            .headers
            .get(TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok())
            .filter(|ttl| (1..=MAX_TTL.as_secs()).contains(&u64::from(*ttl)))
            .ok_or(Refusal::TokenTtl)?;
        let life = Duration::from_secs(ttl.into());
        let token = self.tokens.issue(who, life, (self.clock)());
        Ok(Reply::Token(token, ttl))
    }

    /// Who is asking, if the token says so too, or there need be none.
    fn check_token<'a>(&self, caller: &'a Caller, request: &Parts) -> Result<&'a PodRef, Refusal> {
        let who = caller.who.as_ref().map_err(known)?;
        match request.headers.get(TOKEN) {
            Some(token) => {
                self.metrics.with_token.inc();
                let good = self.tokens.verify(token.as_bytes(), who, (self.clock)());
                good.then_some(who).ok_or(Refusal::BadToken)
            }
            None => {
                self.metrics.without_token.inc();
                let client = request.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
                self.v1_users.count(who, Sdk::of(client));
                match self.settings.imds_v2 {
                    ImdsV2::Optional => Ok(who),
                    ImdsV2::Required => Err(Refusal::NoToken),
                }
            }
        }
    }

    /// Answers by the newest snapshot, or waits for one that has what is asked for.
    async fn ask(&self, who: &PodRef, source: IpAddr, ask: Ask<'_>) -> Result<Bytes, Refusal> {
        let look = || decide(&self.view.load(), who, source, ask, (self.clock)());
        match look() {
            Verdict::Serve(body) => return Ok(body),
            Verdict::Refuse(refusal) => return Err(refusal),
            Verdict::Wait(_) => {}
        }
        let began = Instant::now();
        let deadline = began + self.settings.pod_wait;
        let mut changes = self.view.changes();
        loop {
            // Looked at again after the subscription, so that no change falls in between.
            let refusal = match look() {
                Verdict::Serve(body) => {
                    self.metrics.waits.observe(began.elapsed().as_secs_f64());
                    return Ok(body);
                }
                Verdict::Refuse(refusal) => {
                    self.metrics.waits.observe(began.elapsed().as_secs_f64());
                    return Err(refusal);
                }
                Verdict::Wait(refusal) => refusal,
            };
            if !matches!(timeout_at(deadline, changes.next()).await, Ok(true)) {
                self.metrics.waits.observe(began.elapsed().as_secs_f64());
                self.metrics.waits_over.inc();
                return Err(refusal);
            }
        }
    }

    fn log(&self, caller: &Caller, request: &Parts, refusal: &Refusal) {
        let (who, reason) = (caller.who.as_ref().ok(), refusal.reason());
        let Some(held_back) = self.refusal_log.may_say(who, reason, Instant::now()) else {
            return;
        };
        let status = refusal.status().as_u16();
        let (addr, method) = (caller.source, &request.method);
        let snapshot = self.view.load();
        let facts = who
            .and_then(|who| find(&snapshot, who).ok().flatten())
            .map(|pod| &pod.facts);
        let namespace = facts.map(|facts| &*facts.namespace);
        let name = facts.map(|facts| &*facts.name);
        tracing::info!(
            pod.namespace = namespace,
            pod.name = name,
            %addr,
            %method,
            path = Refusal::echo(request.uri.path()),
            status,
            reason,
            held_back,
            "refused: {refusal}"
        );
    }
}

fn known(refusal: &caller::Refusal) -> Refusal {
    Refusal::Caller(refusal.clone())
}

fn wrong_method(request: &Parts, allowed: &'static str) -> Refusal {
    Refusal::Method {
        method: Refusal::echo(request.method.as_str()),
        allowed,
    }
}

/// The path of a request with the slash at its end that it has not got.
fn with_slash(path: &str) -> Option<HeaderValue> {
    if path.ends_with('/') {
        return None;
    }
    HeaderValue::try_from(format!("{path}/")).ok()
}

fn ok(reply: Reply) -> Answer {
    match reply {
        Reply::Text(body) => with(StatusCode::OK, body),
        Reply::Json(body) => {
            let mut answer = with(StatusCode::OK, body);
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

fn refused(refusal: &Refusal) -> Answer {
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

/// Headers as the real service sends them.
fn with(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
    answer
}
