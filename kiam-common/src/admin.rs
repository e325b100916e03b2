//! The admin port: `/metrics`, `/healthz`, `/readyz`, `/log-level`, and the pages of the program.
//!
//! Pods and agents never reach it: they have ports of their own.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Registry;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;
use crate::{listen, telemetry};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit for reading the body of a request, after its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest log level, in bytes.
const MAX_BODY_BYTES: usize = 1024;

/// A response of the admin port.
pub type PageResponse = Response<Full<Bytes>>;

/// A request for a page of the program.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest<'a> {
    /// The path, unmodified.
    pub path: &'a str,
    /// True if the request came over loopback.
    pub local: bool,
}

/// A page of the program: returns `None` for a path that it does not serve.
pub type Page = Arc<dyn Fn(PageRequest<'_>) -> Option<PageResponse> + Send + Sync>;

/// The admin port, bound and not yet serving.
pub struct Admin {
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
}

struct State {
    registry: Registry,
    readiness: Readiness,
    pages: Vec<Page>,
    /// A page can be expensive: at most one is rendered at a time.
    rendering: Semaphore,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Binds the port, and takes it over from an earlier process that is about to exit: probes
    /// always reach the newest process.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        registry: Registry,
        readiness: Readiness,
    ) -> std::io::Result<Self> {
        let listener = listen::bind_shared(address)?;
        listen::take_over(&listener)?;
        Ok(Self {
            listener,
            registry,
            readiness,
        })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled.
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
            rendering: Semaphore::new(1),
        });
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let (stream, local) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => (stream, peer.ip().to_canonical().is_loopback()),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on the admin port");
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
                    // A probe that disconnects early is not an error.
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
                drop(permit);
            });
        }
    }
}

async fn answer(state: &Arc<State>, request: Request<Incoming>, local: bool) -> PageResponse {
    if request.uri().path() == "/log-level" {
        return log_level(request, local).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed: use GET\n",
        );
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
        path => page(state, path.to_owned(), local).await,
    }
}

/// Renders the page at a path, on a thread that may block.
async fn page(state: &Arc<State>, path: String, local: bool) -> PageResponse {
    // The semaphore is never closed.
    let _permit = state.rendering.acquire().await;
    let shared = Arc::clone(state);
    let rendered = tokio::task::spawn_blocking(move || {
        let request = PageRequest { path: &path, local };
        shared.pages.iter().find_map(|page| page(request))
    });
    match rendered.await {
        Ok(Some(response)) => response,
        Ok(None) => text(
            StatusCode::NOT_FOUND,
            "no such page; try /metrics, /healthz or /readyz\n",
        ),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Returns the log level; `PUT` changes it. Browsers do not let a foreign page send `PUT`.
async fn log_level(request: Request<Incoming>, local: bool) -> PageResponse {
    if !local {
        return loopback_only("/log-level");
    }
    if request.method() == Method::PUT {
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        let Ok(Ok(body)) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
            let why = format!("a log level has at most {MAX_BODY_BYTES} bytes\n");
            return text(StatusCode::BAD_REQUEST, why);
        };
        let level = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        match telemetry::set_level(&level) {
            Ok(()) => tracing::info!(level, "changed the log level"),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    } else if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed: use GET, or PUT with a log level as the body\n",
        );
    }
    let level = telemetry::level().unwrap_or_else(|| "not set".to_owned());
    text(StatusCode::OK, format!("{level}\n"))
}

/// The response to a request from another machine, for a path that is served over loopback only.
pub fn loopback_only(path: &str) -> PageResponse {
    let why = format!(
        "{path} is served over loopback only: request it from within the pod, or through kubectl port-forward\n"
    );
    text(StatusCode::FORBIDDEN, why)
}

/// A response of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> PageResponse {
    with_type(status, "text/plain; charset=utf-8", body)
}

/// A response of a content type.
pub fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> PageResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
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
    async fn probes_metrics_and_pages_are_served() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("kiam_test_total", "A test.").unwrap();
        registry.register(Box::new(counter)).unwrap();
        let readiness = Readiness::new();
        let awaited = readiness.awaits("snapshot");
        let page: Page = Arc::new(|request| {
            (request.path == "/x" && request.local).then(|| text(StatusCode::OK, "mine"))
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
    async fn a_slow_page_does_not_delay_probes() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let page: Page = Arc::new(move |request| {
            (request.path == "/slow").then(|| {
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
        // The runtime of this test has a single thread.
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
    async fn the_log_level_is_read_and_changed() {
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
            refused.starts_with("HTTP/1.1 400") && refused.contains("invalid log level"),
            "{refused}"
        );
        assert!(put(address, &"x".repeat(2000)).await.contains("at most"));
        assert!(
            get(address, "/log-level")
                .await
                .contains("kiam_common=error")
        );
        assert_eq!(loopback_only("/x").status(), StatusCode::FORBIDDEN);
        stop.cancel();
        running.await.unwrap();
    }
}
