//! The Kubernetes API of the synthetic cluster: lists in pages, and a watch of pods.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::fleet::{Fleet, page};

/// Events that a watch may be behind; one that is further behind ends.
const MAX_BEHIND: usize = 1 << 16;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The API. It ends when this is dropped.
pub(super) struct Api {
    address: SocketAddr,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    fleet: Fleet,
    events: broadcast::Sender<Bytes>,
    first_pages: AtomicU64,
}

impl Api {
    pub(super) async fn start(fleet: Fleet) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            fleet,
            events: broadcast::channel(MAX_BEHIND).0,
            first_pages: AtomicU64::new(0),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        Ok(Self {
            address,
            state,
            serving,
        })
    }

    /// Writes a kubeconfig for it.
    pub(super) fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: load\nclusters:\n- name: load\n  cluster: {{server: 'http://{}'}}\n\
             users:\n- name: load\n  user: {{}}\ncontexts:\n- name: load\n  context: {{cluster: load, user: load}}\n",
            self.address
        );
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Sends an event to all watches of pods.
    pub(super) fn publish(&self, kind: &str, pod: &str) -> Result<()> {
        let event = format!("{{\"type\":\"{kind}\",\"object\":{pod}}}\n");
        let sent = self.state.events.send(event.into());
        sent.map(drop).ok().context("no watch of pods is open")
    }

    /// Number of lists of pods that were started.
    pub(super) fn lists_of_pods(&self) -> u64 {
        self.state.first_pages.load(Ordering::Relaxed)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _from)) = listener.accept().await else {
            continue;
        };
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let answer = state.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        connections.spawn(async move {
            // A client that goes away is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let parameter = |name: &str| {
            let mut parameters = query.split('&').filter_map(|one| one.split_once('='));
            parameters.find_map(|(key, value)| (key == name).then_some(value))
        };
        let watch = parameter("watch") == Some("true");
        let begin = parameter("continue").and_then(|at| at.parse().ok());
        let limit = parameter("limit").and_then(|limit| limit.parse().ok());
        let list = |kind: &str, all: u64, one: &dyn Fn(u64) -> String| {
            let begin: u64 = begin.unwrap_or(0);
            let end = limit.map_or(all, |limit: u64| all.min(begin + limit));
            let next = (end < all).then_some(end);
            let items = (begin..end).map(one);
            json(page(kind, items, next))
        };
        let fleet = self.fleet;
        match request.uri().path() {
            "/api/v1/pods" if watch => self.watch(),
            "/api/v1/pods" => {
                if begin.is_none() {
                    self.first_pages.fetch_add(1, Ordering::Relaxed);
                }
                list("Pod", fleet.pods, &|number| {
                    fleet.pod(number, fleet.role_of(number), true)
                })
            }
            "/api/v1/namespaces" | "/api/v1/serviceaccounts" if watch => {
                streamed(futures::stream::pending())
            }
            "/api/v1/namespaces" => list("Namespace", fleet.namespaces, &Fleet::namespace),
            "/api/v1/serviceaccounts" => {
                list("ServiceAccount", fleet.namespaces, &Fleet::service_account)
            }
            _ => {
                let mut response = json("{}".to_owned());
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        }
    }

    fn watch(&self) -> Response<Body> {
        let events = futures::stream::unfold(self.events.subscribe(), async |mut events| {
            // One that is too far behind ends, and its client lists again.
            let event = events.recv().await.ok()?;
            Some((event, events))
        });
        streamed(events)
    }
}

fn json(text: String) -> Response<Body> {
    response(Full::new(text.into()).boxed_unsync())
}

fn streamed(chunks: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    response(StreamBody::new(frames).boxed_unsync())
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
