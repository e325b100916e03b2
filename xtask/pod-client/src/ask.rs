//! A pod that requests its credentials all the time, as SDKs do: a session token, the role's name,
//! the credentials. One line of JSON for each attempt, as soon as it ends. Run by
//! `cargo xtask faults`.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::probe::{self, METADATA_SERVICE};

const TOKEN_PATH: &str = "/latest/api/token";
const CREDENTIALS_PATH: &str = "/latest/meta-data/iam/security-credentials/";

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Time from the start of one attempt to the next
    #[arg(long, default_value_t = 250, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,

    /// Limit for one attempt
    #[arg(long, default_value_t = 2000, value_name = "MILLISECONDS")]
    limit: u64,

    /// Begin on SIGCONT, and end with the first credentials
    #[arg(long)]
    first: bool,
}

/// Result of one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Start, in milliseconds since 1970.
    pub at: u64,
    /// Duration, in microseconds.
    pub took: u64,
    /// The role that the metadata service named.
    #[serde(default)]
    pub role: Option<String>,
    /// Access key in the reply.
    #[serde(default)]
    pub key: Option<String>,
    /// Expiration in the reply.
    #[serde(default)]
    pub expiration: Option<String>,
    /// ARN of the caller from STS, if the client requested it.
    #[serde(default)]
    pub arn: Option<String>,
    /// Session token of the request, if that is a new one.
    #[serde(default)]
    pub token: Option<String>,
    /// Error in place of credentials.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Attempt {
    /// End, in milliseconds since 1970.
    pub const fn end(&self) -> u64 {
        self.at + self.took / 1000
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Runs the command.
///
/// # Errors
/// Fails when the result cannot be printed.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if args.first {
        raise(Signal::SIGSTOP)?;
    }
    runtime.block_on(ask(args))
}

async fn ask(args: &Args) -> Result<()> {
    let mut ticks = interval(Duration::from_millis(args.interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = Duration::from_millis(args.limit);
    let mut token = None;
    loop {
        ticks.tick().await;
        let (at, begun) = (now(), Instant::now());
        let mut attempt = Attempt::default();
        let outcome = timeout(limit, once(&mut token, &mut attempt)).await;
        attempt.failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_elapsed) => Some(format!("no answer within {limit:?}")),
        };
        (attempt.at, attempt.took) = (at, begun.elapsed().as_micros() as u64);
        let mut line = serde_json::to_vec(&attempt)?;
        line.push(b'\n');
        // Whole: the reader goes by lines.
        std::io::stdout().lock().write_all(&line)?;
        if args.first && attempt.key.is_some() {
            return Ok(());
        }
    }
}

/// Asks as SDKs do. A token that is not taken any more is replaced, once.
async fn once(token: &mut Option<String>, attempt: &mut Attempt) -> Result<(), String> {
    if token.is_none() {
        *token = Some(new_token(attempt).await?);
    }
    let mut role = get("", token.as_deref()).await?;
    if role.status == 401 {
        *token = Some(new_token(attempt).await?);
        role = get("", token.as_deref()).await?;
    }
    let name = ok(role)?;
    attempt.role = Some(name.trim().to_owned());
    let body = ok(get(name.trim(), token.as_deref()).await?)?;
    let body: Value = serde_json::from_str(&body).map_err(|_malformed| "no JSON".to_owned())?;
    let field = |name: &str| body[name].as_str().map(str::to_owned);
    (attempt.key, attempt.expiration) = (field("AccessKeyId"), field("Expiration"));
    attempt.key.as_ref().map(drop).ok_or("no access key".into())
}

async fn new_token(attempt: &mut Attempt) -> Result<String, String> {
    let headers = ["x-aws-ec2-metadata-token-ttl-seconds: 21600".to_owned()];
    let token = ok(send(&http::Method::PUT, TOKEN_PATH, &headers).await?)?;
    attempt.token = Some(token.clone());
    Ok(token)
}

async fn get(role: &str, token: Option<&str>) -> Result<probe::Answer, String> {
    let token = token.unwrap_or_default();
    let headers = [format!("x-aws-ec2-metadata-token: {token}")];
    let path = format!("{CREDENTIALS_PATH}{role}");
    send(&http::Method::GET, &path, &headers).await
}

async fn send(
    method: &http::Method,
    path: &str,
    headers: &[String],
) -> Result<probe::Answer, String> {
    let url = format!("{METADATA_SERVICE}{path}");
    let url = url.parse().map_err(|_invalid| format!("no URL: {path}"))?;
    let answer = probe::fetch(method, &url, headers).await;
    answer.map_err(|error| error.to_string())
}

fn ok(answer: probe::Answer) -> Result<String, String> {
    match answer.status {
        200 => Ok(answer.body),
        status => Err(format!("{status}: {}", answer.body.trim())),
    }
}
