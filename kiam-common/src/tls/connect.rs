//! The agent's end: a gRPC channel to one server.

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

/// TCP connect and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to begin, before this side does.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// That the other end's kernel answers does not mean that the server does: it is asked itself, seldom.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the server at {address} as {name:?}: {reason}")]
pub struct ConnectError {
    /// The address that was dialled.
    pub address: SocketAddr,
    /// The name that its certificate must have.
    pub name: String,
    /// What went wrong, and with TLS what it means.
    pub reason: String,
}

/// Connects to the server at `address`, whose certificate must be for `name`.
///
/// The channel does not reconnect to another address; when it fails, ask for a new one.
///
/// # Errors
/// When the server cannot be reached, or one side refuses the other's certificate.
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
            first_word(&mut stream).await?;
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
            let error = io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit} s"));
            Err(failed(error.to_string()))
        }
    }
}

/// Waits for the server's first word, without taking it. With TLS 1.3 a client's handshake is done
/// before the server has looked at its certificate: a server that refuses it says so now, and
/// whoever writes first may lose that to the closed connection. One that does not begins with its
/// HTTP/2 settings, at once; should one wait for ours, it is not waited for long.
async fn first_word(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    match tokio::time::timeout(FIRST_WORD, stream.fill_buf()).await {
        Ok(Ok([])) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection without a word",
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
