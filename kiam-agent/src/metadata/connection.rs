//! One connection of a pod: one request, its answer, its end.
//!
//! As the real service does, each answer ends its connection, whatever the client would like. Who is
//! calling is therefore asked of the kernel again for each request.

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
use super::refusal::Refusal;
use super::slots::{self, Full};
use crate::caller::PodRef;

/// A request's head, all headers together. More is answered 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// A request's body, which nobody needs. More is answered 413.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// How long a connection's request is waited for when the agent stops.
const FIRST_REQUEST: Duration = Duration::from_millis(500);
/// How long what a client sends after its request is taken in, so that its answer is not lost.
const LINGER: Duration = Duration::from_millis(500);
/// How much of it, in bytes.
const MAX_LINGER_BYTES: usize = 64 * 1024;

/// Whose limits a connection counts to: the pod's that the kernel vouches for, or those of the address
/// that it comes from.
pub(super) type Owner = Result<PodRef, IpAddr>;

/// Room for a connection.
type Open = slots::Open<Owner>;

/// Why a connection was closed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TurnedAway {
    #[error("it has {0} connections open, and that is all that a pod may have")]
    Pod(usize),
    #[error("the pods of this node have {0} connections open, and that is all that there may be")]
    Node(usize),
    #[error("it asked nothing while others needed the room")]
    Silent,
    #[error("others of its pod were not answered in {}", kiam_common::duration::format(*.0))]
    Waited(Duration),
}

impl TurnedAway {
    /// For a metric, and the log.
    pub(super) const fn as_label(self) -> &'static str {
        match self {
            Self::Pod(_) => "pod",
            Self::Node(_) => "node",
            Self::Silent => "silent",
            Self::Waited(_) => "waited",
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
    /// Who is at the other end of a connection. To be asked as soon as it is accepted: the kernel's word
    /// on it is there once, and kept as long as it may be waiting to be accepted.
    pub(super) fn caller(&self, stream: &TcpStream, peer: SocketAddr) -> Caller {
        Caller {
            who: self.identify.identify(peer),
            source: peer.ip(),
            on_node: stream.local_addr().is_ok_and(|own| own.ip() == peer.ip()),
        }
    }

    /// Serves one connection to its end.
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
                    Full::Owner => TurnedAway::Pod(self.settings.max_connections_per_pod),
                    Full::All => TurnedAway::Node(self.settings.max_connections),
                };
                return self.turned_away(&caller, why);
            }
        };
        let _counted = Counted::new(&self.metrics.connections);
        // Answers are small, and each is written whole.
        drop(stream.set_nodelay(true));
        let served = tokio::select! {
            served = self.exchange(&mut stream, &caller, &open) => served,
            () = open.evicted() => Err(TurnedAway::Silent),
            () = self.told_to_end(&stop, &open) => return,
        };
        if let Err(why) = served {
            self.turned_away(&caller, why);
        }
    }

    /// Told to stop, a connection that has asked nothing yet gets its answer first: who has just
    /// connected is about to ask.
    async fn told_to_end(&self, stop: &CancellationToken, open: &Open) {
        stop.cancelled().await;
        tokio::time::sleep(FIRST_REQUEST).await;
        if open.has_asked() {
            let grace = self.settings.grace().saturating_sub(FIRST_REQUEST);
            tokio::time::sleep(grace).await;
        }
    }

    async fn exchange(
        &self,
        stream: &mut TcpStream,
        caller: &Caller,
        open: &Open,
    ) -> Result<(), TurnedAway> {
        // Who asks nothing takes nobody's turn.
        let (mut first, limit) = ([0], self.settings.request_timeout);
        let Ok(Ok(1)) = timeout(limit, stream.peek(&mut first)).await else {
            return Ok(());
        };
        open.asks();
        let turn = self.turn(open).await?;
        let answered = timeout(self.settings.lifetime, self.answer_one(stream, caller)).await;
        drop(turn);
        if answered.is_ok() {
            drop(timeout(LINGER, linger(stream)).await);
        }
        Ok(())
    }

    /// This connection's turn to be answered, among those of its pod.
    async fn turn(&self, open: &Open) -> Result<Option<OwnedSemaphorePermit>, TurnedAway> {
        if let Some(turn) = open.try_answer() {
            return Ok(Some(turn));
        }
        self.metrics.connections_queued.inc();
        let limit = self.settings.turn_timeout;
        let turn = timeout(limit, open.answer()).await;
        turn.map_err(|_elapsed| TurnedAway::Waited(limit))
    }

    /// One request and its answer. What is no HTTP is answered by hyper.
    async fn answer_one(&self, stream: &mut TcpStream, caller: &Caller) {
        let service = service_fn(move |request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let answer = match self.take_in(body).await {
                Ok(()) => self.answer(caller, &parts).await,
                Err(refusal) => self.refuse(caller, &parts, refusal),
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
        // The client has hung up, or was told by hyper what is wrong with its request.
        drop(served);
    }

    /// Takes a request's body in, which nobody needs: what is left of it when the connection is closed
    /// would cost the client its answer.
    async fn take_in(&self, mut body: Incoming) -> Result<(), Refusal> {
        if body.is_end_stream() {
            return Ok(());
        }
        let whole = async {
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_broken| Refusal::BadBody)?;
                length += frame.data_ref().map_or(0, Bytes::len);
                if length > MAX_BODY_BYTES {
                    let limit = MAX_BODY_BYTES;
                    return Err(Refusal::LongBody { limit });
                }
            }
            Ok(())
        };
        let limit = self.settings.request_timeout;
        let late = |_elapsed| Refusal::LateBody { limit };
        timeout(limit, whole).await.map_err(late)?
    }
}

/// Ends the sending side, and takes in what still comes until the client has ended its own: closing with
/// something unread would reset the connection, and the client might lose its answer.
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
