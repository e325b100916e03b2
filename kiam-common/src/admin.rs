//! The operator's port: `/metrics`, `/healthz`, `/readyz`, `/log-level`, and what a program adds.
//!
//! Never on the port that pods or agents reach.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;
use crate::{listen, telemetry};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request's body, once its head is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// No log level is longer, in bytes.
const MAX_BODY_BYTES: usize = 1024;

/// What the operator's port answers.
pub type Answer = Response<Full<Bytes>>;

/// What is asked of a page.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The path, as it came.
    pub path: &'a str,
    /// Whether it is asked from the machine itself, over loopback.
    pub local: bool,
}

/// A page that a program adds: the answer to a path of its own, or `None`.
pub type Page = Arc<dyn Fn(Asked<'_>) -> Option<Answer> + Send + Sync>;

/// The operator's port, bound and not yet serving.
pub struct Admin {
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
}

struct State {
    registry: Registry,
    readiness: Readiness,
    pages: Vec<Page>,
    /// Pages may be work: one is made at a time, beside the program's own.
    page: Semaphore,
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
    ) -> std::io::Result<Self> {
        let listener = listen::share(address)?;
        listen::take_over(&listener)?;
        Ok(Self {
            listener,
            registry,
            readiness,
        })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves, these pages too, until told to stop.
    pub async fn run(self, pages: Vec<Page>, stop: CancellationToken) {
        let Self {
            listener,
            registry,
            readiness,
        } = self;
        let state = Arc::new(State {
            registry,
            readiness,
            pages,
            page: Semaphore::new(1),
        });
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (stream, local) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => (stream, peer.ip().to_canonical().is_loopback()),
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
                    let state = Arc::clone(&state);
                    async move { Ok::<_, Infallible>(answer(&state, request, local).await) }
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

async fn answer(state: &Arc<State>, request: Request<Incoming>, local: bool) -> Answer {
    if request.uri().path() == "/log-level" {
        return log_level(request, local).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET here\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let pending = state.readiness.pending();
            if pending.is_empty() {
                text(StatusCode::OK, "ok\n")
            } else {
                let body = format!("not ready: awaiting {}\n", pending.join(", "));
                text(StatusCode::SERVICE_UNAVAILABLE, body)
            }
        }
        "/metrics" => match TextEncoder::new().encode_to_string(&state.registry.gather()) {
            Ok(body) => with_type(StatusCode::OK, "text/plain; version=0.0.4", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        path => added(state, path.to_owned(), local).await,
    }
}

/// The answer of the page that is at a path, made on a thread where it may take its time.
async fn added(state: &Arc<State>, path: String, local: bool) -> Answer {
    // Never closed.
    let _turn = state.page.acquire().await;
    let of = Arc::clone(state);
    let made = tokio::task::spawn_blocking(move || {
        let asked = Asked { path: &path, local };
        of.pages.iter().find_map(|page| page(asked))
    });
    match made.await {
        Ok(Some(answer)) => answer,
        Ok(None) => text(
            StatusCode::NOT_FOUND,
            "here are /metrics, /healthz and /readyz\n",
        ),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The level that is logged at: told, and with `PUT` changed. A browser lets no foreign page send that.
async fn log_level(request: Request<Incoming>, local: bool) -> Answer {
    if !local {
        return only_local("/log-level");
    }
    if request.method() == Method::PUT {
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        let Ok(Ok(body)) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
            let why = format!("a log level is no longer than {MAX_BODY_BYTES} bytes\n");
            return text(StatusCode::BAD_REQUEST, why);
        };
        let level = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        match telemetry::set_level(&level) {
            Ok(()) => tracing::info!(level, "the log level was changed"),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    } else if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET here, and PUT with a level as the body\n",
        );
    }
    let level = telemetry::level().unwrap_or_else(|| "not set".to_owned());
    text(StatusCode::OK, format!("{level}\n"))
}

/// The answer to somebody on another machine, where only the machine itself is told.
#[must_use]
pub fn only_local(path: &str) -> Answer {
    let why = format!(
        "{path} is answered over loopback only: ask from within the pod, or through kubectl port-forward\n"
    );
    text(StatusCode::FORBIDDEN, why)
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
        let page: Page = Arc::new(|asked| {
            (asked.path == "/x" && asked.local).then(|| text(StatusCode::OK, "mine"))
        });
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(local, registry, readiness).unwrap();
        let address = admin.address().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(vec![page], stop.clone()));

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

    #[tokio::test]
    async fn a_page_that_takes_its_time_keeps_nothing_else_waiting() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let page: Page = Arc::new(move |asked| {
            (asked.path == "/slow").then(|| {
                wait.lock().unwrap().recv().unwrap();
                text(StatusCode::OK, "at last")
            })
        });
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(local, Registry::new(), Readiness::new()).unwrap();
        let address = admin.address().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(vec![page], stop.clone()));
        let slow = tokio::spawn(async move { get(address, "/slow").await });
        // This runtime has one thread.
        for _ in 0..20 {
            assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        }
        assert!(!slow.is_finished());
        go.send(()).unwrap();
        assert!(slow.await.unwrap().ends_with("at last"));
        stop.cancel();
        running.await.unwrap();
    }

    async fn put(address: SocketAddr, level: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = level.len();
        let request = format!(
            "PUT /log-level HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{level}"
        );
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_log_level_is_told_and_changed() {
        drop(telemetry::init(false, "error"));
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(local, Registry::new(), Readiness::new()).unwrap();
        let address = admin.address().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(Vec::new(), stop.clone()));

        assert!(get(address, "/log-level").await.ends_with("error\n"));
        let changed = put(address, " warn,kiam_common=error\n").await;
        assert!(changed.starts_with("HTTP/1.1 200"), "{changed}");
        assert!(telemetry::level().unwrap().contains("kiam_common=error"));
        let refused = put(address, "kiam_common=loud").await;
        assert!(
            refused.starts_with("HTTP/1.1 400") && refused.contains("is no log level"),
            "{refused}"
        );
        assert!(
            put(address, &"x".repeat(2000))
                .await
                .contains("no longer than")
        );
        assert!(
            get(address, "/log-level")
                .await
                .contains("kiam_common=error")
        );
        assert_eq!(only_local("/x").status(), StatusCode::FORBIDDEN);
        stop.cancel();
        running.await.unwrap();
    }
}
