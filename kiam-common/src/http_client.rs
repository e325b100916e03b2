//! One HTTP request to one address: for the metadata service of the node, and for the admin port of
//! kiam's programs. No redirects, no proxies, no DNS, and a bounded response.

use std::io;
use std::net::SocketAddr;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The error of [`send`].
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address of the service.
        address: SocketAddr,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The service does not speak HTTP, or closed the connection.
    #[error("invalid HTTP response from {address}: {source}")]
    Http {
        /// The address of the service.
        address: SocketAddr,
        /// The error of the HTTP client.
        source: hyper::Error,
    },
    /// The body is incomplete, or longer than the limit.
    #[error("cannot read the response of {address}: {problem}")]
    Body {
        /// The address of the service.
        address: SocketAddr,
        /// The error of the HTTP client.
        problem: String,
    },
}

/// Sends a request on a new connection. The caller sets the timeout.
///
/// # Errors
/// When no complete response with a body of at most `limit` bytes arrives.
pub async fn send(
    address: SocketAddr,
    request: Request<Empty<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, HttpError> {
    let failed = |source| HttpError::Connect { address, source };
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    let http = |source| HttpError::Http { address, source };
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(http)?;
    // The set aborts the connection's task when this call ends.
    let mut running = JoinSet::new();
    running.spawn(connection);
    let answer = sender.send_request(request).await.map_err(http)?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|error| HttpError::Body {
        address,
        problem: error.to_string(),
    })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
