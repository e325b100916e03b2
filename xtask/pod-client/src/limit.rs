//! Upper limit of hyper: a server with the same answer and nothing else. Run by the benchmark on
//! the node, beside the agent: with the same runtime, the same hyper, the same socket options.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Response;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on
    pub address: SocketAddr,

    /// File with the answer
    pub body: PathBuf,

    /// Answer without HTTP, with the same bytes to any request: the upper limit of a client
    #[arg(long)]
    pub bare: bool,
}

/// Serves until it is killed; prints `listening` first.
///
/// # Errors
/// Fails when the address cannot be bound.
pub fn run(args: &Args) -> Result<()> {
    let body = Bytes::from(std::fs::read(&args.body)?);
    // As the agent's `#[tokio::main]`.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args, body))
}

#[expect(clippy::print_stdout, reason = "the benchmark waits for it")]
async fn serve(args: &Args, body: Bytes) -> Result<()> {
    let listener = TcpListener::bind(args.address)
        .await
        .with_context(|| format!("cannot listen on {}", args.address))?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await?;
        // Fails for one that is reset already.
        drop(stream.set_nodelay(true));
        let body = body.clone();
        if args.bare {
            tokio::spawn(parrot(stream, body));
            continue;
        }
        tokio::spawn(async move {
            let service = service_fn(move |_request| {
                let mut answer = Response::new(Full::new(body.clone()));
                let headers = answer.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // Clients reset their connections.
            drop(
                http1::Builder::new()
                    .keep_alive(false)
                    .title_case_headers(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

/// One read, one write, and the end.
async fn parrot(mut stream: TcpStream, body: Bytes) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = [head.as_bytes(), &body].concat();
    let mut request = [0; 4096];
    if matches!(stream.read(&mut request).await, Ok(read) if read > 0) {
        // A client that has gone hears nothing.
        drop(stream.write_all(&answer).await);
    }
}
