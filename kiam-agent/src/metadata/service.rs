//! From a request to its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{HeaderValue, USER_AGENT};
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::answer::{Answer, Reply, ok, refused};
use super::caller::Caller;
use super::connection::TurnedAway;
use super::decide::{Ask, Verdict, decide, find};
use super::headers::{TOKEN, TOKEN_TTL};
use super::metrics::Handler;
use super::passthrough::passed;
use super::path::{Route, canonical, route};
use super::refusal::Refusal;
use super::sdk::Sdk;
use super::tokens::MAX_TTL;
use crate::args::ImdsV2;
use crate::caller::{self, PodRef};
use crate::stream::Standing;
use crate::view::PodFacts;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Who sends a request, and for how long the token is good that came with it.
#[derive(Debug, Clone, Copy)]
struct Asker<'a> {
    who: &'a PodRef,
    token_left: Option<u32>,
}

/// What a request gets, and for how long its token is still good.
type Outcome = Result<(Reply, Option<u32>), Refusal>;

impl Shared {
    /// Answers one request.
    pub(super) async fn answer(&self, caller: &Caller, request: &Parts) -> Answer {
        let began = Instant::now();
        let path = canonical(request.uri.path());
        let (handler, outcome) = match &path {
            Err(error) => (Handler::Proxy, Err(Refusal::BadPath(*error))),
            Ok(path) => self.answer_path(caller, request, path).await,
        };
        self.conclude(caller, request, (handler, outcome), began)
    }

    /// Answers a request that cannot be taken in.
    pub(super) fn refuse(&self, caller: &Caller, request: &Parts, refusal: Refusal) -> Answer {
        let path = canonical(request.uri.path());
        let handler = path
            .as_deref()
            .map_or(Handler::Proxy, |path| self.handler(caller, &route(path)));
        self.conclude(caller, request, (handler, Err(refusal)), Instant::now())
    }

    fn conclude(
        &self,
        caller: &Caller,
        request: &Parts,
        (handler, outcome): (Handler, Outcome),
        began: Instant,
    ) -> Answer {
        let answer = match outcome {
            Ok((reply, token_left)) => {
                let mut answer = ok(reply);
                if let Some(left) = token_left {
                    answer.headers_mut().insert(TOKEN_TTL, left.into());
                }
                answer
            }
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

    /// Which part of the service answers.
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
    ) -> (Handler, Outcome) {
        let untold = |reply| (reply, None);
        let route = route(path);
        let handler = self.handler(caller, &route);
        let ask = match (handler, route) {
            (Handler::Proxy, _) | (_, Route::Other) => {
                return (handler, self.pass(caller, request, path).await);
            }
            (_, Route::Token { latest }) => {
                let token = self.token(caller, request, latest);
                return (handler, token.map(untold));
            }
            (_, Route::Ping) => {
                let pong = Bytes::from_static(b"pong");
                return (handler, Ok(untold(Reply::Text(pong))));
            }
            (_, Route::Health) => {
                return (handler, self.health(request).await.map(untold));
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
        let asker = match handler {
            // There are no tokens where containers ask.
            Handler::Container => caller.who.as_ref().map_err(known).map(|who| Asker {
                who,
                token_left: None,
            }),
            _ => self.check_token(caller, request),
        };
        let Asker { who, token_left } = match asker {
            Ok(asker) => asker,
            Err(refusal) => return (handler, Err(refusal)),
        };
        if self.settings.legacy_redirects
            && matches!(ask, Ask::Listing)
            && let Some(location) = with_slash(request.uri.path())
        {
            return (handler, Ok((Reply::Redirect(location), token_left)));
        }
        let reply = match handler {
            Handler::Container => Reply::Json,
            _ => Reply::Text,
        };
        let asked = self.ask(who, caller.source, ask).await;
        (handler, asked.map(|body| (reply(body), token_left)))
    }

    /// Answers with what the node's own service says, where that is let through.
    async fn pass(&self, caller: &Caller, request: &Parts, path: &str) -> Outcome {
        let Asker { token_left, .. } = self.check_token(caller, request)?;
        let refused = || Refusal::Path {
            path: format!("/{}", Refusal::echo(path)),
        };
        let allowed = self.settings.allow_routes.as_ref().ok_or_else(refused)?;
        let folder = request.uri.path().ends_with('/');
        let path = passed(allowed, path, folder).ok_or_else(refused)?;
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(wrong_method(request, "GET, HEAD"));
        }
        let answer = self.upstream.get(&path).await?;
        Ok((Reply::Relayed(answer), token_left))
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
    fn check_token<'a>(&self, caller: &'a Caller, request: &Parts) -> Result<Asker<'a>, Refusal> {
        let who = caller.who.as_ref().map_err(known)?;
        match request.headers.get(TOKEN) {
            Some(token) => {
                self.metrics.with_token.inc();
                let left = self.tokens.verify(token.as_bytes(), who, (self.clock)());
                let token_left = Some(left.ok_or(Refusal::BadToken)?);
                Ok(Asker { who, token_left })
            }
            None => {
                self.metrics.without_token.inc();
                let client = request.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
                self.v1_users.count(who, Sdk::of(client));
                let token_left = None;
                match self.settings.imds_v2 {
                    ImdsV2::Optional => Ok(Asker { who, token_left }),
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

    /// Counts a connection that was closed without an answer, and logs whose it was.
    pub(super) fn turned_away(&self, caller: &Caller, why: TurnedAway) {
        let (who, limit) = (caller.who.as_ref().ok(), why.as_label());
        let refused = &self.metrics.connections_refused;
        refused.with_label_values(&[limit]).inc();
        let Some(held_back) = self.refusal_log.may_say(who, limit, Instant::now()) else {
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
            "a connection is closed without an answer: {why}"
        );
    }

    fn facts(&self, who: Option<&PodRef>) -> Option<Arc<PodFacts>> {
        let snapshot = self.view.load();
        let pod = find(&snapshot, who?).ok().flatten()?;
        Some(Arc::clone(&pod.facts))
    }

    fn log(&self, caller: &Caller, request: &Parts, refusal: &Refusal) {
        let (who, reason) = (caller.who.as_ref().ok(), refusal.reason());
        let Some(held_back) = self.refusal_log.may_say(who, reason, Instant::now()) else {
            return;
        };
        let status = refusal.status().as_u16();
        let (addr, method) = (caller.source, &request.method);
        let facts = self.facts(who);
        let pod = facts.as_deref();
        tracing::info!(
            pod.namespace = pod.map(|pod| &*pod.namespace),
            pod.name = pod.map(|pod| &*pod.name),
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
