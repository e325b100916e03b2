//! One HTTP request, and its answer as JSON.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// The metadata service, as pods know it.
pub const METADATA_SERVICE: &str = "http://169.254.169.254";

/// Longer answers are cut off with an error.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: http::Method,

    /// Header, as in "name: value"
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,

    /// Limit for the whole request
    #[arg(long, default_value_t = 5000, value_name = "MILLISECONDS")]
    limit: u64,

    /// An http:// URL whose host is an address
    url: http::Uri,
}

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An answer.
    Answer(Answer),
    /// None; why.
    Failure(String),
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, those with several values joined.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// Peer address of the socket.
    pub peer: Option<SocketAddr>,
}

impl Outcome {
    /// Returns the answer.
    ///
    /// # Errors
    /// Fails when there was no answer.
    pub fn answer(self) -> Result<Answer> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Failure(why) => anyhow::bail!("no answer: {why}"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when the flags make no sense or the outcome cannot be printed.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let limit = Duration::from_millis(args.limit);
    let outcome = runtime.block_on(async {
        match tokio::time::timeout(limit, fetch(&args.method, &args.url, &args.headers)).await {
            Ok(Ok(answer)) => Outcome::Answer(answer),
            Ok(Err(error)) => Outcome::Failure(error.to_string()),
            Err(_elapsed) => Outcome::Failure(format!("no answer within {limit:?}")),
        }
    });
    let mut stdout = std::io::stdout();
    serde_json::to_writer(&mut stdout, &outcome)?;
    writeln!(stdout)?;
    Ok(())
}

/// Sends a request to a host that is given by its address.
///
/// # Errors
/// Fails when there is no answer.
pub async fn fetch(
    method: &http::Method,
    url: &http::Uri,
    headers: &[String],
) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    let host = url.host().ok_or("the URL names no host")?;
    let host = host.trim_matches(['[', ']']).parse()?;
    let address = SocketAddr::new(host, url.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await?;
    let peer = stream.peer_addr().ok();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(async move {
        // What goes wrong here is the request's error too.
        let _ = connection.await;
    }));

    let path = url
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let host = url.authority().map_or("", http::uri::Authority::as_str);
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host);
    for header in headers {
        let (name, value) = header.split_once(':').ok_or("a header has no colon")?;
        request = request.header(name.trim(), value.trim());
    }
    let response = sender
        .send_request(request.body(Empty::<&[u8]>::new())?)
        .await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES)
        .collect()
        .await?
        .to_bytes();
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|joined| *joined += &format!(", {value}"))
            .or_insert_with(|| value.into_owned());
    }
    Ok(Answer {
        status: parts.status.as_u16(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        peer,
    })
}

/// The task that drives a connection, which ends with the request.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
