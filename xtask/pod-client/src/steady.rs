//! Requests from inside of a pod at a steady rate, each on a connection of its
//! own, and the result of each. Run by `cargo xtask restarts` and tests.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::probe::fetch;

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Connections per second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,

    /// Duration
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Limit for one request
    #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
    pub limit: u64,

    /// An http:// URL whose host is an address
    pub url: http::Uri,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// Start, in milliseconds since 1970.
    pub at: u64,
    /// Duration, in microseconds.
    pub took: u64,
    /// Result.
    pub end: End,
}

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// An answer with this status and body.
    Answered(u16, String),
    /// The connection was refused.
    Refused,
    /// Anything else.
    Failed(String),
}

/// Runs the command: a line of JSON for each request, at the end.
///
/// # Errors
/// Fails when the flags make no sense or the outcome cannot be printed.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tries = runtime.block_on(steady(args))?;
    let mut stdout = std::io::stdout().lock();
    for tried in tries {
        serde_json::to_writer(&mut stdout, &tried)?;
        writeln!(stdout)?;
    }
    Ok(())
}

/// Parses the output of the command.
///
/// # Errors
/// Fails when the text is not output of the command.
pub fn read(text: &str) -> Result<Vec<Try>> {
    let tries: Result<_, _> = text.lines().map(serde_json::from_str).collect();
    tries.context("cannot parse the output of the steady client")
}

async fn steady(args: &Args) -> Result<Vec<Try>> {
    let count = u64::from(args.rate) * args.seconds;
    let mut ticks = interval(Duration::from_secs(1) / args.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let limit = Duration::from_millis(args.limit);
    let mut running = JoinSet::new();
    let mut tries = Vec::new();
    for _ in 0..count {
        ticks.tick().await;
        running.spawn(one(args.url.clone(), limit));
        while let Some(tried) = running.try_join_next() {
            tries.push(tried?);
        }
    }
    while let Some(tried) = running.join_next().await {
        tries.push(tried?);
    }
    ensure!(tries.len() as u64 == count, "a request was lost");
    tries.sort_by_key(|tried| tried.at);
    Ok(tries)
}

async fn one(url: http::Uri, limit: Duration) -> Try {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = since.map_or(0, |since| since.as_millis() as u64);
    let begun = Instant::now();
    let end = match timeout(limit, fetch(&http::Method::GET, &url, &[])).await {
        Ok(Ok(answer)) => End::Answered(answer.status, answer.body),
        Ok(Err(error)) if is_refused(&*error) => End::Refused,
        Ok(Err(error)) => End::Failed(error.to_string()),
        Err(_elapsed) => End::Failed(format!("no answer within {limit:?}")),
    };
    Try {
        at,
        took: begun.elapsed().as_micros() as u64,
        end,
    }
}

fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}
