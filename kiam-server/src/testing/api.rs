//! A fake Kubernetes API without sockets, so that the clock of a test controls it. It serves lists
//! and watches of the objects that a test adds, and fails on request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tonic::codegen::{Bytes, Service};

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;
type Sender = mpsc::UnboundedSender<std::io::Result<Bytes>>;

/// The behavior of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiMode {
    Up,
    /// Responds like a load balancer without a backend.
    Unavailable,
    /// Refuses connections.
    Refuses,
    /// Accepts requests and never responds.
    Hangs,
}

#[derive(Clone)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

struct State {
    mode: ApiMode,
    version: u64,
    /// Keyed by plural name, then by name.
    objects: HashMap<&'static str, BTreeMap<String, Value>>,
    watchers: Vec<(&'static str, Sender)>,
    requests: usize,
    /// The response to a TokenReview.
    review: Value,
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            mode: ApiMode::Up,
            version: 1,
            objects: HashMap::new(),
            watchers: Vec::new(),
            requests: 0,
            review: Value::Null,
        })))
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    pub(crate) fn requests(&self) -> usize {
        self.0.lock().unwrap().requests
    }

    pub(crate) fn review(&self, answer: Value) {
        self.0.lock().unwrap().review = answer;
    }

    /// Changes the mode. Open watches break, unless the API is up or hangs.
    pub(crate) fn set_mode(&self, mode: ApiMode) {
        let mut state = self.0.lock().unwrap();
        state.mode = mode;
        match mode {
            ApiMode::Up | ApiMode::Hangs => {}
            ApiMode::Unavailable => state.watchers.clear(),
            ApiMode::Refuses => state.break_watches(),
        }
    }

    /// Adds or replaces an object, and sends the event.
    pub(crate) fn put(&self, plural: &'static str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let objects = state.objects.entry(plural).or_default();
        let known = objects.insert(name, object.clone()).is_some();
        let event = if known { "MODIFIED" } else { "ADDED" };
        state.send(plural, &json!({ "type": event, "object": object }));
    }

    /// Removes an object; sends the event if `event`.
    pub(crate) fn remove(&self, plural: &'static str, name: &str, event: bool) {
        let mut state = self.0.lock().unwrap();
        let objects = state.objects.entry(plural).or_default();
        let object = objects.remove(name).unwrap();
        if event {
            state.send(plural, &json!({ "type": "DELETED", "object": object }));
        }
    }

    /// Ends the watches of a kind because their resource version is too old.
    pub(crate) fn expire(&self, plural: &'static str) {
        let status = json!({ "kind": "Status", "status": "Failure", "reason": "Expired",
            "code": 410, "message": "too old resource version" });
        let mut state = self.0.lock().unwrap();
        state.send(plural, &json!({ "type": "ERROR", "object": status }));
        state.watchers.retain(|(of, _)| *of != plural);
    }

    /// Writes a raw line into the watches of a kind.
    pub(crate) fn write(&self, plural: &'static str, text: &'static str) {
        let state = self.0.lock().unwrap();
        for (_, to) in state.watchers.iter().filter(|(of, _)| *of == plural) {
            to.send(Ok(Bytes::from_static(text.as_bytes()))).unwrap();
        }
    }

    /// Breaks all connections in the middle of a line.
    pub(crate) fn break_connections(&self) {
        self.0.lock().unwrap().break_watches();
    }

    fn answer(&self, path: &str, query: &str) -> Option<Result<Answer, std::io::Error>> {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        match state.mode {
            ApiMode::Up => {}
            ApiMode::Unavailable => return Some(Ok(failure(503, "no backend"))),
            ApiMode::Refuses => return Some(Err(std::io::ErrorKind::ConnectionRefused.into())),
            ApiMode::Hangs => return None,
        }
        if path.ends_with("/tokenreviews") {
            return Some(Ok(full(201, &state.review)));
        }
        let plurals = ["pods", "namespaces", "serviceaccounts"];
        let Some(plural) = plurals.into_iter().find(|plural| path.ends_with(plural)) else {
            return Some(Ok(failure(404, path)));
        };
        if query.contains("watch=true") {
            let (to, from) = mpsc::unbounded_channel();
            state.watchers.push((plural, to));
            let frames = stream::unfold(from, async |mut from| {
                let frame = match from.recv().await? {
                    Ok(line) => Ok(Full::new(line).frame().await?.unwrap()),
                    Err(error) => Err(error),
                };
                Some((frame, from))
            });
            let body = StreamBody::new(frames.boxed());
            return Some(Ok(Response::new(body.boxed_unsync())));
        }
        let kind = match plural {
            "pods" => "PodList",
            _ => "PartialObjectMetadataList",
        };
        let items: Vec<_> = state.objects.entry(plural).or_default().values().collect();
        let list = json!({ "kind": kind, "apiVersion": "v1", "items": items,
            "metadata": { "resourceVersion": state.version.to_string() } });
        Some(Ok(full(200, &list)))
    }
}

impl State {
    fn send(&mut self, plural: &str, event: &Value) {
        let line = format!("{event}\n");
        let of = |(of, to): &(&'static str, Sender)| {
            *of != plural || to.send(Ok(Bytes::from(line.clone()))).is_ok()
        };
        self.watchers.retain(of);
    }

    fn break_watches(&mut self) {
        for (_, to) in self.watchers.drain(..) {
            drop(to.send(Ok(Bytes::from_static(b"{\"type\":\"ADD"))));
            drop(to.send(Err(std::io::ErrorKind::ConnectionReset.into())));
        }
    }
}

fn full(code: u16, body: &Value) -> Answer {
    let bytes = Bytes::from(body.to_string());
    let body = Full::new(bytes).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}

fn failure(code: u16, message: &str) -> Answer {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": "ServiceUnavailable", "message": message, "code": code });
    full(code, &status)
}

impl Service<Request<Body>> for FakeApi {
    type Response = Answer;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Answer, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let uri = request.uri();
        let answer = self.answer(uri.path(), uri.query().unwrap_or_default());
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}
