//! Effects of each fault on pods, as a table in Markdown.

#![expect(clippy::print_stdout, reason = "the command's result")]

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::secrets::Scan;
use super::startup_latency::StartupLatency;

use super::client::Verdict;
use super::table::Notice;
use pod_client::ask::Attempt;

const HEAD: &str = "| fault | requests | failed | refused | wrong | longest | recovered | |\n|---|---:|---:|---:|---:|---:|---:|---|";

/// Result of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    rows: Vec<Row>,
    pub(super) startup_latency: Option<StartupLatency>,
    pub(super) scan: Option<Scan>,
    #[serde(skip)]
    json: bool,
}

impl Report {
    pub(super) fn new(seed: u64, json: bool) -> Self {
        if !json {
            println!("--seed {seed} repeats the pairs\n\n{HEAD}");
        }
        Self {
            seed,
            rows: Vec::new(),
            startup_latency: None,
            scan: None,
            json,
        }
    }

    /// Records a fault, and prints its row.
    pub(super) fn add(&mut self, row: Row) {
        if !self.json {
            println!("{}", row.line());
        }
        self.rows.push(row);
    }

    /// Whole report, as a part of a page.
    pub(super) fn text(&self) -> String {
        let lines = self.rows.iter().map(Row::line);
        let rows = lines.collect::<Vec<_>>().join("\n");
        let head = format!("`--seed {}`\n\n{HEAD}", self.seed);
        format!("{head}\n{rows}\n{}\n", self.rest())
    }

    /// Lines below the table.
    fn rest(&self) -> String {
        let requests: usize = self.rows.iter().map(|row| row.requests).sum();
        let wrong: usize = self.rows.iter().map(|row| row.wrong).sum();
        let rows = self.rows.len();
        let mut rest = format!("\n- {rows} rows, {requests} requests, {wrong} wrong answers");
        let lines = [
            self.startup_latency.as_ref().map(StartupLatency::line),
            self.scan.as_ref().map(Scan::line),
        ];
        for line in lines.into_iter().flatten() {
            let _ = write!(rest, "\n- {line}");
        }
        rest
    }

    /// Prints the rest.
    ///
    /// # Errors
    /// Fails when an expectation was not met.
    pub(super) fn conclude(&self) -> Result<()> {
        let broken = self.rows.iter().filter(|row| !row.broken.is_empty());
        let broken = broken.count();
        if self.json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!("{}", self.rest());
        }
        ensure!(
            broken == 0,
            "{broken} faults were noticed otherwise than they may"
        );
        if let Some(scan) = &self.scan {
            ensure!(
                scan.hits.is_empty(),
                "secrets were written: {}",
                scan.hits.join("; ")
            );
        }
        Ok(())
    }
}

/// Effects of a fault, or of a pair, on pods.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    /// Fault, or pair.
    pub(super) fault: String,
    /// Requests of running pods, including those without an answer.
    pub(super) requests: usize,
    /// Pods that have a role and got no credentials.
    pub(super) failures: usize,
    /// Pods that have no role, or have lost it just now, and got no credentials.
    pub(super) refused: usize,
    /// Another's role, ended credentials, a role that was withdrawn, an unknown key.
    pub(super) wrong: usize,
    /// The longest time to credentials, in milliseconds.
    pub(super) longest_ms: u64,
    /// Time from the end of the fault until new pods on all nodes had credentials, in milliseconds.
    pub(super) recovered_ms: Option<u64>,
    /// Expectations that were not met.
    pub(super) broken: Vec<String>,
}

impl Row {
    pub(super) fn new(fault: String) -> Self {
        Self {
            fault,
            ..Self::default()
        }
    }

    /// Takes note of a request; `recovered` is when failures end, in milliseconds since 1970.
    pub(super) fn add(
        &mut self,
        who: &str,
        attempt: &Attempt,
        verdict: Verdict,
        notice: Notice,
        recovered: u64,
    ) {
        self.requests += 1;
        match verdict {
            Verdict::Right => self.longest_ms = self.longest_ms.max(attempt.took / 1000),
            Verdict::Refused => self.refused += 1,
            Verdict::Wrong(what) => {
                self.wrong += 1;
                self.note(format!("{who} got {what}"));
            }
            Verdict::Failed(why) => {
                self.failures += 1;
                if notice == Notice::Nothing {
                    self.note(format!("{who} got nothing: {why}"));
                } else if attempt.at > recovered {
                    self.note(format!("{who} got nothing after the recovery: {why}"));
                }
            }
        }
    }

    pub(super) fn recovered(&mut self, took: &anyhow::Result<Duration>, limit: Duration) {
        match took {
            Ok(took) => {
                self.recovered_ms = Some(took.as_millis() as u64);
                if *took > limit {
                    self.note(format!(
                        "recovered after {took:.1?}, and not within {limit:?}"
                    ));
                }
            }
            Err(error) => self.note(format!("did not recover: {error:#}")),
        }
    }

    /// The first few are enough.
    pub(super) fn note(&mut self, what: String) {
        if self.broken.len() < 5 {
            self.broken.push(what);
        }
    }

    /// Row of a table in Markdown.
    pub(super) fn line(&self) -> String {
        let recovered = self
            .recovered_ms
            .map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms"));
        let outcome = if self.broken.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        let mut line = format!(
            "| {} | {} | {} | {} | {} | {} ms | {recovered} | {outcome} |",
            self.fault, self.requests, self.failures, self.refused, self.wrong, self.longest_ms
        );
        for broken in &self.broken {
            let _ = write!(line, "\n    {broken}");
        }
        line
    }
}
