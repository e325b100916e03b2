//! Requests from inside of a pod, as many as will go. Run by the benchmark.
//!
//! It writes a prepared request and only looks for the end of the answer. Its own CPU time is in
//! the result, to show whether it was the limit.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::Histogram;

/// Requests that are not counted: caches and connections become warm.
const WARM_UP: Duration = Duration::from_millis(50);
/// Limit for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two attempts while something starts.
const RETRY: Duration = Duration::from_micros(500);
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// Placeholder with the length of the service's tokens.
const NO_TOKEN: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Kind of requests
    #[arg(value_enum)]
    pub how: How,

    /// Address of the service
    pub address: SocketAddr,

    /// Path to request; for `exchange`, the name of a role
    pub path: String,

    /// Concurrent connections
    #[arg(long, default_value_t = 1)]
    pub connections: usize,

    /// Duration
    #[arg(long, default_value_t = 400, value_name = "MILLISECONDS")]
    pub time: u64,

    /// File for the body of the first answer
    #[arg(long)]
    pub save: Option<PathBuf>,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum How {
    /// Each request on a connection of its own
    Connect,
    /// The requests of an SDK: a token, the role, its credentials, each on a connection of its own
    Exchange,
    /// Requests until an answer has credentials that are not the node's
    First,
    /// The start of a request on each connection, and nothing more
    Hold,
}

/// Result of the command.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Duration in seconds.
    pub seconds: f64,
    /// Time of each request, or exchange.
    pub times: Histogram,
    /// CPU time of this process, in seconds.
    pub cpu_seconds: f64,
}

/// Result of [`How::First`]: times of the monotonic clock, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct First {
    /// Time at which the node's own service was last reached, if it was.
    pub exposed: Option<f64>,
    /// Time of the answer.
    pub answered: f64,
}

/// Runs the command, and prints one line of JSON when it ends.
///
/// # Errors
/// Fails when an answer is not 200.
#[expect(clippy::print_stdout, reason = "the benchmark reads it")]
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let line = runtime.block_on(async {
        match args.how {
            How::First => Ok(serde_json::to_string(&first(args).await?)?),
            How::Hold => hold(args).await,
            _ => Ok(serde_json::to_string(&many(args).await?)?),
        }
    })?;
    println!("{line}");
    Ok(())
}

async fn many(args: &Args) -> Result<Outcome> {
    if let Some(path) = &args.save {
        let mut client = Client::connect(args.address).await?;
        let body = client.ask(&get(&args.path, None)).await?.to_vec();
        std::fs::write(path, body)?;
    }
    let (cpu, begun) = (cpu()?, Instant::now());
    let from = begun + WARM_UP;
    let until = from + Duration::from_millis(args.time);
    let mut tasks = JoinSet::new();
    for _ in 0..args.connections {
        let args = args.clone();
        tasks.spawn(async move { timeout(ANSWER_LIMIT * 2, one(&args, from, until)).await? });
    }
    let mut outcome = Outcome::default();
    while let Some(times) = tasks.join_next().await {
        outcome.times.merge(&times??);
    }
    outcome.seconds = until.duration_since(from).as_secs_f64();
    outcome.cpu_seconds = (self::cpu()? - cpu) * outcome.seconds / begun.elapsed().as_secs_f64();
    Ok(outcome)
}

/// One connection after another.
async fn one(args: &Args, from: Instant, until: Instant) -> Result<Histogram> {
    let mut times = Histogram::default();
    let request = get(&args.path, None);
    loop {
        let begun = Instant::now();
        match args.how {
            How::Exchange => exchange(args).await?,
            _ => drop(Client::connect(args.address).await?.ask(&request).await?),
        }
        let now = Instant::now();
        if now >= until {
            return Ok(times);
        }
        if begun >= from {
            times.add(now - begun);
        }
    }
}

async fn exchange(args: &Args) -> Result<()> {
    let put = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n";
    let ask = async |request: Vec<u8>| {
        let mut client = Client::connect(args.address).await?;
        anyhow::Ok(client.ask(&request).await?.to_vec())
    };
    let token = ask(put.as_bytes().to_vec()).await?;
    let token = String::from_utf8(token).context("the token is not text")?;
    // The limit answers everything with a document.
    let token = if token.contains('\n') {
        NO_TOKEN.to_owned()
    } else {
        token
    };
    ask(get(ROLES, Some(&token))).await?;
    ask(get(&args.path, Some(&token))).await?;
    Ok(())
}

async fn first(args: &Args) -> Result<First> {
    let end = Instant::now() + Duration::from_millis(args.time);
    let mut exposed = None;
    let request = get(&args.path, None);
    while Instant::now() < end {
        let attempt = async {
            let mut client = Client::connect(args.address).await?;
            let body = client.ask(&request).await?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(body).into_owned())
        };
        match timeout(ANSWER_LIMIT, attempt).await {
            Ok(Ok(body)) if body.contains("AccessKeyId") => {
                let answered = monotonic()?;
                return Ok(First { exposed, answered });
            }
            // The node's own service knows no such role; its reply differs from the agent's.
            Ok(Err(error)) if is_refusal(&error) && !error.to_string().contains("EC2ws") => {
                exposed = Some(monotonic()?);
            }
            _ => {}
        }
        sleep(RETRY).await;
    }
    bail!("no credentials within {} ms", args.time)
}

#[expect(clippy::print_stdout, reason = "the benchmark waits for it")]
async fn hold(args: &Args) -> Result<String> {
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        let mut client = Client::connect(args.address).await?;
        client.stream.write_all(b"GET /").await?;
        clients.push(client);
    }
    println!("holding");
    sleep(Duration::from_millis(args.time)).await;
    Ok(format!("held {}", clients.len()))
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.to_string().starts_with("refused")
}

fn get(path: &str, token: Option<&str>) -> Vec<u8> {
    let token = token.map_or(String::new(), |token| {
        format!("X-aws-ec2-metadata-token: {token}\r\n")
    });
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: aws-sdk\r\n{token}Accept: */*\r\n\r\n").into_bytes()
}

/// One connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // Without a trace when it is closed: ports must not run out.
        stream.set_zero_linger()?;
        let buffer = vec![0; 16 << 10];
        Ok(Self { stream, buffer })
    }

    /// The body of an answer, which must be 200 and have a length.
    async fn ask(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            let rest = self.buffer.get_mut(filled..).unwrap_or_default();
            let read = self.stream.read(rest).await?;
            ensure!(read > 0, "the connection was closed before the answer");
            filled += read;
            let so_far = &self.buffer[..filled];
            if let Some((begin, end)) = body(so_far)?
                && end <= filled
            {
                return Ok(&self.buffer[begin..end]);
            }
        }
    }
}

/// Start and end of an answer's body, once its head is complete.
fn body(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head])?;
    ensure!(text.starts_with("HTTP/1.1 200"), "refused: {text}");
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<usize>())
    });
    let length = length.context("the answer has no length")??;
    Ok(Some((head + 4, head + 4 + length)))
}

/// CPU time of this process, in seconds.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// The clock that all processes share, in milliseconds.
pub fn monotonic() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.num_nanoseconds() as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_at_its_content_length() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-length: 2\r\n\r\nab";
        assert_eq!(body(answer).unwrap(), Some((38, 40)));
        assert_eq!(body(&answer[..36]).unwrap(), None);
        assert!(body(b"HTTP/1.1 404 No\r\n\r\n").is_err());
        assert!(body(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
