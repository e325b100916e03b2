//! The server's end: accepts connections and hands on those whose handshake is done.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::explain::explain;
use super::keepalive;
use super::peer::Connection;
use super::reload::ServerTls;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once; further connections wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;
/// Connections whose handshake is done and which nobody has taken yet.
const MAX_WAITING: usize = 64;

/// Connections whose client has proved that its certificate comes from the authorities.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts connections and does their handshakes.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    done: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    /// Accepts on `listener`, with whatever certificates are current.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Arc<ServerTls>) -> (Self, Incoming) {
        let (done, incoming) = mpsc::channel(MAX_WAITING);
        (
            Self {
                listener,
                tls,
                done,
            },
            ReceiverStream::new(incoming),
        )
    }

    /// Accepts until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: wait for some to be closed.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let acceptor = TlsAcceptor::from(self.tls.current());
            let done = self.done.clone();
            tokio::spawn(async move {
                if let Some(stream) = handshake(acceptor, stream, peer).await {
                    // Nobody takes it once the server has stopped.
                    drop(done.send(Ok(stream)).await);
                }
                drop(place);
            });
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<Connection> {
    if let Err(error) = keepalive::prepare(&stream) {
        tracing::debug!(%peer, %error, "the connection is gone already");
        return None;
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Connection::new(stream, peer)),
        Ok(Err(error)) => {
            let reason = explain(&error).unwrap_or_else(|| error.to_string());
            tracing::warn!(%peer, "TLS handshake failed: {reason}");
            None
        }
        Err(_elapsed) => {
            let limit = HANDSHAKE_TIMEOUT.as_secs();
            tracing::warn!(%peer, "TLS handshake failed: not finished within {limit} s");
            None
        }
    }
}
