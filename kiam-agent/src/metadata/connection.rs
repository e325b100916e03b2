//! One connection of a pod: one request, its response, its end.
//!
//! As in the real service, each response ends its connection, whatever the client requests. The
//! caller is therefore attested by the kernel again for each request.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::caller::Caller;
use super::denial::Denial;
use super::slots::{self, Full};
use crate::caller::PodRef;

/// Maximum size of a request's head. Larger ones get a 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Maximum size of a request's body, which no request needs. Larger ones get a 413.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Maximum time to wait for the request of an open connection during a shutdown.
const FIRST_REQUEST: Duration = Duration::from_millis(500);
/// Maximum time to read what a client sends after its request, so that it receives the response.
const LINGER: Duration = Duration::from_millis(500);
/// Maximum number of bytes to read then.
const MAX_LINGER_BYTES: usize = 64 * 1024;

/// Owner of a connection, whose limits it counts against: the attested pod, or the source address.
pub(super) type Owner = Result<PodRef, IpAddr>;

/// A slot for a connection.
type Open = slots::Open<Owner>;

/// Reason why a connection was closed without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    #[error("the limit of {0} connections per pod is reached")]
    Pod(usize),
    #[error("the limit of {0} connections of all pods of this node is reached")]
    Node(usize),
    #[error("it had sent no request when its slot was needed")]
    Silent,
    #[error("it waited {} for other requests of its pod", kiam_common::duration::format(*.0))]
    Queued(Duration),
}

impl Rejected {
    /// Returns the value of the label `limit`.
    pub(super) const fn as_label(self) -> &'static str {
        match self {
            Self::Pod(_) => "pod",
            Self::Node(_) => "node",
            Self::Silent => "silent",
            Self::Queued(_) => "waited",
        }
    }
}

/// Counts a connection while it is open.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Shared {
    /// Identifies the caller of a connection. Called as soon as the connection is accepted: the
    /// attestation can be read once, and is kept only while the connection may wait for that.
    pub(super) fn caller(&self, stream: &TcpStream, peer: SocketAddr) -> Caller {
        Caller {
            who: self.identify.identify(peer),
            source: peer.ip(),
            on_node: stream.local_addr().is_ok_and(|own| own.ip() == peer.ip()),
        }
    }

    /// Serves a connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut stream: TcpStream,
        caller: Caller,
        stop: CancellationToken,
    ) {
        let owner = caller.who.clone().map_err(|_unknown| caller.source);
        let open = match self.slots.open(owner) {
            Ok(open) => open,
            Err(full) => {
                let why = match full {
                    Full::Owner => Rejected::Pod(self.settings.max_connections_per_pod),
                    Full::All => Rejected::Node(self.settings.max_connections),
                };
                return self.reject(&caller, why);
            }
        };
        let _counted = Counted::new(&self.metrics.connections);
        // Answers are small, and each is written whole.
        drop(stream.set_nodelay(true));
        let served = tokio::select! {
            served = self.exchange(&mut stream, &caller, &open) => served,
            () = open.evicted() => Err(Rejected::Silent),
            () = self.shutdown(&stop, &open) => return,
        };
        if let Err(why) = served {
            self.reject(&caller, why);
        }
    }

    /// Waits until a shutdown ends this connection. A connection without a request gets time to
    /// send one: its client has just connected.
    async fn shutdown(&self, stop: &CancellationToken, open: &Open) {
        stop.cancelled().await;
        tokio::time::sleep(FIRST_REQUEST).await;
        if open.is_active() {
            let grace = self.settings.grace().saturating_sub(FIRST_REQUEST);
            tokio::time::sleep(grace).await;
        }
    }

    async fn exchange(
        &self,
        stream: &mut TcpStream,
        caller: &Caller,
        open: &Open,
    ) -> Result<(), Rejected> {
        // A connection without a request must not use up a permit.
        let (mut first, limit) = ([0], self.settings.request_timeout);
        let Ok(Ok(1)) = timeout(limit, stream.peek(&mut first)).await else {
            return Ok(());
        };
        open.mark_active();
        let turn = self.turn(open).await?;
        let answered = timeout(self.settings.lifetime, self.answer_one(stream, caller)).await;
        drop(turn);
        if answered.is_ok() {
            drop(timeout(LINGER, linger(stream)).await);
        }
        Ok(())
    }

    /// Waits for the connection's turn among those of its pod.
    async fn turn(&self, open: &Open) -> Result<Option<OwnedSemaphorePermit>, Rejected> {
        if let Some(turn) = open.try_answer() {
            return Ok(Some(turn));
        }
        self.metrics.connections_queued.inc();
        let limit = self.settings.turn_timeout;
        let turn = timeout(limit, open.answer()).await;
        turn.map_err(|_elapsed| Rejected::Queued(limit))
    }

    /// Handles one request. hyper answers malformed ones.
    async fn answer_one(&self, stream: &mut TcpStream, caller: &Caller) {
        let service = service_fn(move |request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let answer = match self.discard(body).await {
                Ok(()) => self.answer(caller, &parts).await,
                Err(denial) => self.answer_denied(caller, &parts, denial),
            };
            Ok::<_, Infallible>(answer)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.request_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .title_case_headers(true)
            .half_close(true)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        // The client closed the connection, or hyper answered the malformed request.
        drop(served);
    }

    /// Reads and discards the body of a request: closing a connection with unread data would lose
    /// the response.
    async fn discard(&self, mut body: Incoming) -> Result<(), Denial> {
        if body.is_end_stream() {
            return Ok(());
        }
        let whole = async {
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_broken| Denial::BadBody)?;
                length += frame.data_ref().map_or(0, Bytes::len);
                if length > MAX_BODY_BYTES {
                    let limit = MAX_BODY_BYTES;
                    return Err(Denial::LongBody { limit });
                }
            }
            Ok(())
        };
        let limit = self.settings.request_timeout;
        let late = |_elapsed| Denial::LateBody { limit };
        timeout(limit, whole).await.map_err(late)?
    }
}

/// Closes the sending side, and reads until the client closes its own: closing with unread data
/// would reset the connection, and the client might lose the response.
async fn linger(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    let mut left = MAX_LINGER_BYTES;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}
