//! One HTTP request to one address: for the node's own metadata service, and for programs of
//! kiam's own. Neither redirects, proxies nor DNS come into it, and an answer has a bound.

use std::io;
use std::net::SocketAddr;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody is there, or not reached.
    #[error("{address} cannot be connected to: {source}")]
    Connect {
        /// Where it should be.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is there speaks no HTTP, or broke off.
    #[error("{address} does not answer as HTTP has it: {source}")]
    Http {
        /// Where that is.
        address: SocketAddr,
        /// What was wrong.
        source: hyper::Error,
    },
    /// The body broke off, or is longer than the limit.
    #[error("the answer of {address} cannot be read: {problem}")]
    Body {
        /// Where it came from.
        address: SocketAddr,
        /// What was wrong.
        problem: String,
    },
}

/// Sends a request on a connection of its own. How long that may take is up to the caller.
///
/// # Errors
/// When there is no whole answer with a body of at most `limit` bytes.
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
    // Ends with this call, whatever becomes of it.
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
