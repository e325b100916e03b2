//! Metrics and labels in queries, against those of the programs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use suites::metrics;

/// Labels that Prometheus adds to scraped series, and those that queries create.
const TARGET: &[&str] = &["instance", "job", "v1"];
/// Metrics of Prometheus, and of the prometheus crate on Linux.
const OTHERS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "up",
];
/// Words before a list of labels.
const GROUPINGS: &[&str] = &["by", "ignoring", "on", "without"];

/// The series that the programs can have, each with its labels.
#[derive(Debug)]
pub(super) struct Known(BTreeMap<String, BTreeSet<String>>);

/// A part of a query.
#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Text,
    Mark(char),
}

impl Known {
    /// Asks the programs.
    pub(super) fn ask() -> Result<Self> {
        let mut known = Self(BTreeMap::new());
        for other in OTHERS {
            known.0.insert((*other).to_owned(), BTreeSet::new());
        }
        for program in metrics::PROGRAMS {
            for (name, metric) in metrics::of(program)? {
                known.add(&name, &metric.kind, metric.labels);
            }
        }
        Ok(known)
    }

    fn add(&mut self, name: &str, kind: &str, labels: Vec<String>) {
        let labels: BTreeSet<_> = labels.into_iter().collect();
        if kind != "histogram" {
            self.0.insert(name.to_owned(), labels);
            return;
        }
        for part in ["sum", "count"] {
            self.0.insert(format!("{name}_{part}"), labels.clone());
        }
        let mut labels = labels;
        labels.insert("le".to_owned());
        self.0.insert(format!("{name}_bucket"), labels);
    }

    /// Checks that a query names metrics that exist, and labels that these have.
    pub(super) fn check(&self, query: &str) -> Result<()> {
        let tokens = tokens(query);
        let mut named = BTreeSet::new();
        let mut grouped = Vec::new();
        let mut rest = &*tokens;
        let mut metric = None;
        while let [first, after @ ..] = rest {
            rest = after;
            match first {
                Token::Word(word) if GROUPINGS.contains(word) => {
                    let list = after.iter().take_while(|it| **it != Token::Mark(')'));
                    let list: Vec<_> = list.collect();
                    rest = after.get(list.len()..).unwrap_or_default();
                    grouped.extend(list.into_iter().filter_map(Token::word));
                }
                Token::Word(word) if is_metric(word) => {
                    let labels = self.0.get(*word);
                    let labels = labels.with_context(|| format!("no program has {word}"))?;
                    named.extend(labels.iter().map(String::as_str));
                    metric = Some((word, labels));
                }
                Token::Mark('{') => {
                    let list = after.iter().take_while(|it| **it != Token::Mark('}'));
                    let list: Vec<_> = list.collect();
                    rest = after.get(list.len()..).unwrap_or_default();
                    let (name, has) = metric.context("`{` follows no metric")?;
                    for label in list.into_iter().filter_map(Token::word) {
                        let is_known = has.contains(label) || TARGET.contains(&label);
                        ensure!(is_known, "{name} has no label {label}");
                    }
                }
                _ => {}
            }
        }
        ensure!(metric.is_some(), "it names no metric");
        for label in grouped {
            let is_known = named.contains(label) || TARGET.contains(&label);
            ensure!(is_known, "none of its metrics has the label {label}");
        }
        Ok(())
    }
}

impl<'a> Token<'a> {
    fn word(&self) -> Option<&'a str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

fn is_metric(word: &str) -> bool {
    let prefixes = ["kiam_", "grpc_", "process_"];
    word == "up" || prefixes.iter().any(|prefix| word.starts_with(prefix))
}

/// Words, strings and other characters of a query.
fn tokens(query: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (at, part) in query.split('"').enumerate() {
        if at % 2 == 1 {
            tokens.push(Token::Text);
            continue;
        }
        let mut rest = part;
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            if end > 0 {
                let (word, after) = rest.split_at(end);
                tokens.push(Token::Word(word));
                rest = after;
            } else {
                if !first.is_whitespace() {
                    tokens.push(Token::Mark(first));
                }
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let mut known = Known(BTreeMap::from([("up".to_owned(), BTreeSet::new())]));
        known.add("kiam_ends_total", "counter", vec!["reason".to_owned()]);
        known.add("kiam_wait_seconds", "histogram", vec!["handler".to_owned()]);
        known
    }

    #[test]
    fn queries_with_metrics_and_labels_that_exist_pass() {
        for query in [
            "up{job=\"kiam-agent\"} == 0",
            "sum by (job, reason) (rate(kiam_ends_total{reason=~\"a|b\",instance=~\".*\"}[5m])) > 0",
            "histogram_quantile(0.9, sum by (le, handler) (rate(kiam_wait_seconds_bucket[5m])))",
            "rate(kiam_wait_seconds_sum{handler!=\"x\"}[5m])",
        ] {
            known().check(query).unwrap();
        }
    }

    #[test]
    fn a_metric_or_label_that_no_program_has_is_named() {
        for (query, reason) in [
            (
                "rate(kiam_begins_total[5m])",
                "no program has kiam_begins_total",
            ),
            (
                "kiam_ends_total{hook=\"x\"}",
                "kiam_ends_total has no label hook",
            ),
            (
                "sum by (hook) (kiam_ends_total)",
                "none of its metrics has the label hook",
            ),
            ("kiam_wait_seconds > 1", "no program has kiam_wait_seconds"),
            (
                "sum by (le) (kiam_wait_seconds_sum)",
                "none of its metrics has the label le",
            ),
            ("1 > 0", "it names no metric"),
        ] {
            let error = known().check(query).unwrap_err();
            assert_eq!(error.to_string(), reason, "{query}");
        }
    }
}
