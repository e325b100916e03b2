//! The agent's end: a gRPC channel to one server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::explain::explain;
use super::reload::ClientTls;

/// TCP connect and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing comes back for an interval and a timeout is dead: the agent
/// moves to another server. kiam's default interval.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

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
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://kiam-server")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
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

fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
