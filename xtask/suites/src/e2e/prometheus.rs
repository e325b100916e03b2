//! A real Prometheus beside the fixture's programs, scraping them as in a cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use toolchain::find_program;

use testbed::kiam::{AGENT_ADMIN_PORT, SERVER_ADMIN_PORT};
use testbed::probe;
use testbed::sandbox::{CONTROL_IP, Guest, Node, Program, Sandbox};

const PORT: u16 = 9090;
/// Short, for runs of a minute.
const SCRAPE: &str = "500ms";
/// Agent and server.
const PROGRAMS: usize = 2;
const LOOK_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
const STEP_SECONDS: &str = "1";

/// Prometheus, and a proxy to an agent that listens only on its node's loopback.
#[derive(Debug)]
pub(super) struct Prometheus {
    program: Program,
    _way: Guest,
}

/// Result of a query, for one set of labels.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Series {
    pub(super) metric: BTreeMap<String, String>,
    /// Unix time in seconds, and the value as text.
    pub(super) values: Vec<(f64, String)>,
}

#[derive(Deserialize)]
struct Found {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Series>,
}

impl Prometheus {
    /// Starts it, in the control namespace.
    pub(super) fn start(sandbox: &Sandbox, node: &Node) -> Result<Self> {
        let way = SocketAddr::new(node.ip(), AGENT_ADMIN_PORT);
        let folder = sandbox.folder("prometheus")?;
        let config = serde_json::json!({
            "global": { "scrape_interval": SCRAPE, "scrape_timeout": SCRAPE },
            "scrape_configs": [
                { "job_name": "kiam-agent", "static_configs": [{ "targets": [way.to_string()] }] },
                { "job_name": "kiam-server", "static_configs": [
                    { "targets": [format!("127.0.0.1:{SERVER_ADMIN_PORT}")] }] },
            ],
        });
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let found = find_program("prometheus").context("there is no prometheus in PATH")?;
        let mut command = sandbox.control().command(found);
        command
            .env_clear()
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={CONTROL_IP}:{PORT}"))
            .arg("--log.level=warn");
        let to = SocketAddr::from(([127, 0, 0, 1], AGENT_ADMIN_PORT));
        let forward = move || async move {
            let Ok(listener) = TcpListener::bind(way).await else {
                return;
            };
            while let Ok((mut from, _peer)) = listener.accept().await {
                tokio::spawn(async move {
                    // Without an agent there are no metrics.
                    if let Ok(mut agent) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut agent).await;
                    }
                });
            }
        };
        Ok(Self {
            _way: node.place().netns().host("metrics", forward)?,
            program: Program::start("prometheus", command)?,
        })
    }

    /// Waits until it has scraped both programs once more, which only a query shows.
    pub(super) async fn looks(&self) -> Result<()> {
        let begin = jiff::Timestamp::now();
        let deadline = Instant::now() + LOOK_LIMIT;
        loop {
            // When each was looked at last, among those that answered.
            let last = self.ask("timestamp(up == 1)", Duration::ZERO).await;
            let last = last.unwrap_or_default();
            let times = last.iter().filter_map(|series| series.values.last());
            let since = |text: &String| text.parse().is_ok_and(|at: f64| at > seconds(begin));
            if times.filter(|(_, text)| since(text)).count() == PROGRAMS {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Prometheus does not get at the programs' metrics:\n{}",
                self.program.tail()
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Results of a query over the last `past`, second by second.
    pub(super) async fn ask(&self, query: &str, past: Duration) -> Result<Vec<Series>> {
        let now = jiff::Timestamp::now().as_second();
        let begin = now - i64::try_from(past.as_secs())?;
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let url = format!(
            "http://{CONTROL_IP}:{PORT}/api/v1/query_range?query={query}&start={begin}&end={now}&step={STEP_SECONDS}"
        );
        let answer = probe::fetch(&http::Method::GET, &url.parse()?, &[]).await;
        let answer = answer.map_err(anyhow::Error::from_boxed).with_context(|| {
            format!(
                "{} does not answer:\n{}",
                self.program.name(),
                self.program.tail()
            )
        })?;
        ensure!(answer.status == 200, "Prometheus: {}", answer.body);
        let found: Found = serde_json::from_str(&answer.body).context("Prometheus' answer")?;
        Ok(found.data.result)
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts milliseconds")]
fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
