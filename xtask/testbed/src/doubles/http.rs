//! The HTTP server below the doubles: counts connections and bytes.

use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::sandbox::Guest;

const MAX_BODY_BYTES: usize = 64 << 10;

/// Answer of a double; `None` closes the connection without one.
pub(super) type Answer = Option<Response<Full<Bytes>>>;

/// Traffic on the sockets of a double, below HTTP.
#[derive(Debug, Default)]
pub struct Traffic {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// Number of accepted connections.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Number of received bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Serves the sockets until the guest is dropped.
pub(super) fn serve<F>(
    name: &str,
    listeners: Vec<TcpListener>,
    traffic: Arc<Traffic>,
    handler: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
) -> Result<Guest>
where
    F: Future<Output = Answer> + Send + 'static,
{
    for listener in &listeners {
        listener
            .set_nonblocking(true)
            .context("cannot use a socket")?;
    }
    Guest::outside(name, move || async move {
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            let (traffic, handler) = (Arc::clone(&traffic), handler.clone());
            accepting.spawn(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return;
                };
                loop {
                    // An accepted connection that is gone again is none of ours.
                    if let Ok((stream, _from)) = listener.accept().await {
                        traffic.connections.fetch_add(1, Ordering::Relaxed);
                        let stream = Counted(stream, Arc::clone(&traffic));
                        tokio::spawn(connection(stream, handler.clone()));
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
            });
        }
        accepting.join_all().await;
    })
}

async fn connection<F>(stream: Counted, handler: impl Fn(Request<Bytes>) -> F + Clone + Send)
where
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move {
            let answer = match whole(request).await {
                Ok(request) => handler(request).await,
                Err(refused) => Some(refused),
            };
            answer.ok_or(Silence)
        }
    });
    // A client that goes away in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The request with its whole body, or the answer to one that is too large.
async fn whole(request: Request<Incoming>) -> Result<Request<Bytes>, Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => Ok(Request::from_parts(parts, body.to_bytes())),
        Err(_too_large) => Err(status(StatusCode::PAYLOAD_TOO_LARGE)),
    }
}

/// An answer without a body.
pub(super) fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Makes hyper close the connection.
#[derive(Debug, thiserror::Error)]
#[error("the double does not answer")]
struct Silence;

/// A connection whose received bytes are counted.
struct Counted(TcpStream, Arc<Traffic>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.1.bytes.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
