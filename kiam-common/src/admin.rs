//! The operator's port: `/metrics`, `/healthz`, `/readyz`, and what a program adds to them.
//!
//! Never on the port that pods or agents reach.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::listen;
use crate::readiness::Readiness;

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the operator's port answers.
pub type Answer = Response<Full<Bytes>>;

/// A page that a program adds: the answer to a path of its own, or `None`.
pub type Page = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// The operator's port, bound and not yet serving.
pub struct Admin {
    listener: TcpListener,
    state: Arc<State>,
}

struct State {
    registry: Registry,
    readiness: Readiness,
    pages: Vec<Page>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Takes the port, from an earlier process as well that is about to end: probes are answered
    /// for the latest.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        registry: Registry,
        readiness: Readiness,
        pages: Vec<Page>,
    ) -> std::io::Result<Self> {
        let listener = listen::share(address)?;
        listen::take_over(&listener)?;
        Ok(Self {
            listener,
            state: Arc::new(State {
                registry,
                readiness,
                pages,
            }),
        })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, state } = self;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept on the operator's port");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (state, stop) = (Arc::clone(&state), stop.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = state.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // A probe that hangs up early is no news.
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
                drop(place);
            });
        }
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Answer {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET here\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let pending = self.readiness.pending();
                if pending.is_empty() {
                    text(StatusCode::OK, "ok\n")
                } else {
                    let body = format!("not ready: awaiting {}\n", pending.join(", "));
                    text(StatusCode::SERVICE_UNAVAILABLE, body)
                }
            }
            "/metrics" => match TextEncoder::new().encode_to_string(&self.registry.gather()) {
                Ok(body) => with_type(StatusCode::OK, "text/plain; version=0.0.4", body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            path => self
                .pages
                .iter()
                .find_map(|page| page(path))
                .unwrap_or_else(|| {
                    text(
                        StatusCode::NOT_FOUND,
                        "here are /metrics, /healthz and /readyz\n",
                    )
                }),
        }
    }
}

/// A plain-text answer.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body)
}

/// An answer of a content type.
#[must_use]
pub fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_probes_metrics_and_added_pages() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("kiam_test_total", "A test.").unwrap();
        registry.register(Box::new(counter)).unwrap();
        let readiness = Readiness::new();
        let awaited = readiness.awaits("snapshot");
        let page: Page = Arc::new(|path| (path == "/x").then(|| text(StatusCode::OK, "mine")));
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(local, registry, readiness, vec![page]).unwrap();
        let address = admin.address().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(stop.clone()));

        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let unready = get(address, "/readyz").await;
        assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("awaiting snapshot"));
        awaited.done();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.contains("kiam_test_total 0"));
        assert!(get(address, "/x").await.ends_with("mine"));
        assert!(get(address, "/y").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        running.await.unwrap();
    }
}
