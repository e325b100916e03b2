//! One connection of a pod: who is it, its limits, its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::service::Caller;

/// A request's head, all headers together. More is answered 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a connection's first request is waited for when the agent stops.
const FIRST_REQUEST: Duration = Duration::from_millis(500);
/// A connection that is turned away has this long to read why.
const TURN_AWAY: Duration = Duration::from_millis(500);

/// Told to stop, a connection that has asked nothing yet gets its answer first: who has just
/// connected is about to ask.
async fn stopped(stop: &CancellationToken, asked: &Notify) {
    stop.cancelled().await;
    drop(tokio::time::timeout(FIRST_REQUEST, asked.notified()).await);
}

/// Counts a connection while it is open.
struct Open(IntGauge);

impl Open {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Shared {
    /// Serves one connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        stop: CancellationToken,
    ) {
        // Asked at once and whatever follows: the kernel's note on a connection is there once.
        let caller = Arc::new(Caller {
            who: self.identify.identify(peer),
            source: peer.ip(),
            on_node: stream.local_addr().is_ok_and(|own| own.ip() == peer.ip()),
        });
        let Some(place) = self.places.take(caller.who.as_ref().ok().cloned()) else {
            let limit = self.settings.max_connections_per_pod;
            self.turn_away(stream, "pod", limit).await;
            return;
        };
        let Ok(place_of_all) = self.all_places.try_acquire() else {
            let limit = self.settings.max_connections;
            self.turn_away(stream, "node", limit).await;
            return;
        };
        let _open = Open::new(&self.metrics.connections);
        // Answers are small, and each is written whole.
        drop(stream.set_nodelay(true));
        self.serve_requests(stream, caller, stop).await;
        drop((place, place_of_all));
    }

    async fn serve_requests(
        self: &Arc<Self>,
        stream: TcpStream,
        caller: Arc<Caller>,
        stop: CancellationToken,
    ) {
        let shared = Arc::clone(self);
        let asked = Arc::new(Notify::new());
        let asks = Arc::clone(&asked);
        let service = service_fn(move |request: Request<Incoming>| {
            asks.notify_one();
            let (shared, caller) = (Arc::clone(&shared), Arc::clone(&caller));
            async move {
                let (parts, _body) = request.into_parts();
                Ok::<_, Infallible>(shared.answer(&caller, &parts).await)
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.settings.header_timeout)
                .max_buf_size(MAX_HEAD_BYTES)
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
        );
        tokio::select! {
            // A client that hangs up early, or sends what is no HTTP, is answered by hyper.
            _ = connection.as_mut() => return,
            () = stopped(&stop, &asked) => {}
            () = tokio::time::sleep(self.settings.lifetime) => {}
        }
        connection.as_mut().graceful_shutdown();
        let grace = self.settings.grace();
        drop(tokio::time::timeout(grace, connection).await);
    }

    /// Tells one connection too many so, unless there are too many even of those.
    async fn turn_away(&self, mut stream: TcpStream, whose: &str, limit: usize) {
        let refused = &self.metrics.connections_refused;
        refused.with_label_values(&[whose]).inc();
        let Ok(_place) = self.turned_away.try_acquire() else {
            return;
        };
        let body = format!(
            "this {whose} has {limit} connections to kiam-agent open, which is all that it may have; close some, then try again\n"
        );
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nServer: EC2ws\r\n\
             Retry-After: 1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let exchange = async {
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            // Closing with a request unread would reset the connection before the answer is read.
            let mut rest = [0; 1024];
            let mut left = MAX_HEAD_BYTES;
            while left > 0 {
                match stream.read(&mut rest).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            std::io::Result::Ok(())
        };
        drop(tokio::time::timeout(TURN_AWAY, exchange).await);
    }
}
