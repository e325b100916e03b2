//! Agent side: a gRPC channel to one server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::explain::explain;
use super::keepalive;
use super::reload::ClientTls;

/// The limit for TCP connect and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait for the first bytes of the server, before the client sends its own.
const FIRST_BYTES: Duration = Duration::from_secs(1);
/// TCP keepalive proves only that the kernel of the server is alive. HTTP/2 pings check the server
/// itself, at a low rate.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The error of [`connect`].
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the server at {address} as {name:?}: {reason}")]
pub struct ConnectError {
    /// The address of the server.
    pub address: SocketAddr,
    /// The name that its certificate must have.
    pub name: String,
    /// The cause, explained if it is a TLS error.
    pub reason: String,
}

/// Connects to the server at `address`, whose certificate must be for `name`.
///
/// The channel does not reconnect to another address; when it fails, connect again.
///
/// # Errors
/// When the server cannot be reached, or one side rejects the other's certificate.
pub async fn connect(
    address: SocketAddr,
    name: ServerName<'static>,
    tls: &ClientTls,
) -> Result<Channel, ConnectError> {
    let connector = TlsConnector::from(tls.current());
    let server_name = name.clone();
    let dial = service_fn(move |_uri| {
        let (connector, name) = (connector.clone(), server_name.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            keepalive::prepare(&stream)?;
            let mut stream = connector.connect(name, stream).await?;
            wait_for_first_bytes(&mut stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://kiam-server")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(dial);
    let failed = |reason| ConnectError {
        address,
        name: name.to_str().into_owned(),
        reason,
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, channel).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(failed(
            explain(&error).unwrap_or_else(|| innermost(&error).to_string()),
        )),
        Err(_elapsed) => {
            let limit = CONNECT_TIMEOUT.as_secs();
            let error = io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no response within {limit} s"),
            );
            Err(failed(error.to_string()))
        }
    }
}

/// Waits for the first bytes of the server, without consuming them.
///
/// In TLS 1.3 the handshake of the client completes before the server has verified its certificate.
/// A server that rejects it sends an alert now, which is lost if the client writes first and its
/// packet meets the closed connection. A server that accepts it sends its HTTP/2 settings at once.
/// The wait is bounded in case a server sends its settings only after those of the client.
async fn wait_for_first_bytes(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    match tokio::time::timeout(FIRST_BYTES, stream.fill_buf()).await {
        Ok(Ok([])) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection without sending anything",
        )),
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    }
}

fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
