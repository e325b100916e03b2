//! Descriptions of the programs' metrics, which each program lists itself (`kiam-agent metrics`).
//!
//! A scrape lists only what was counted at least once, so that reading one is not enough. The
//! end-to-end tests compare what running programs serve with this.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use toolchain::{cargo, exec};

/// The programs that serve metrics.
pub const PROGRAMS: [&str; 2] = ["kiam-agent", "kiam-server"];

/// Description of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metric {
    name: String,
    /// `counter`, `gauge` or `histogram`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// Help text.
    pub help: String,
}

/// A program's metrics by name.
pub type Metrics = BTreeMap<String, Metric>;

/// Returns all metrics of a program, which is built.
///
/// # Errors
/// Fails when the program does not compile or does not list them.
pub fn of(program: &str) -> Result<Metrics> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--locked", "-p", program, "--", "metrics"]);
    let listed = exec(&mut run)?;
    let listed: Vec<Metric> = serde_json::from_str(&listed)
        .with_context(|| format!("{program} metrics: not the expected JSON"))?;
    let named = listed
        .into_iter()
        .map(|metric| (metric.name.clone(), metric));
    Ok(named.collect())
}
