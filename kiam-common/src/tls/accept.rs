//! Server side: accepts connections and passes them on after their handshake.

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

/// The limit for one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent handshakes; further connections wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;
/// Connections that wait to be taken after their handshake.
const MAX_WAITING: usize = 64;

/// Connections whose client has a certificate that one of the authorities issued.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts connections and performs their handshakes.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    done: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    /// Accepts on `listener`, with the certificates that are current at each connection.
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

    /// Accepts until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Most likely out of file descriptors: wait until some are closed.
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
                    // Fails only after the server has stopped.
                    drop(done.send(Ok(stream)).await);
                }
                drop(permit);
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
        tracing::debug!(%peer, %error, "the connection closed before its TLS handshake");
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
