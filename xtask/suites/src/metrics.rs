//! Which metrics there are: read from the source, where each is made with its name and help.
//!
//! A program tells only what it has counted at least once, so running it would not do.
//! The end-to-end tests compare what running programs tell with this.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toolchain::workspace;

/// What a metric is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its help.
    pub help: String,
    /// Names of its labels.
    pub labels: Vec<String>,
}

/// A program's metrics by name.
pub type Metrics = BTreeMap<String, Metric>;

/// The programs, and where theirs are made; in `kiam-common` for one end of mutual TLS each.
pub const PROGRAMS: [(&str, &str); 2] = [("kiam-agent", "client"), ("kiam-server", "server")];

/// All metrics of a program.
pub fn of(program: &str, tls_side: &str) -> Result<Metrics> {
    let mut metrics = Metrics::new();
    for folder in [program, "kiam-common"] {
        let mut files = Vec::new();
        sources(&workspace().join(folder).join("src"), &mut files)?;
        for text in files {
            for (name, metric) in scan(&text) {
                let name = name.replace("{side}", tls_side);
                let other = metrics.insert(name.clone(), metric);
                ensure!(other.is_none(), "{program} makes {name} twice");
            }
        }
    }
    Ok(metrics)
}

/// The text of all files that are no tests, up to where their tests begin.
fn sources(folder: &Path, files: &mut Vec<String>) -> Result<()> {
    let entries = std::fs::read_dir(folder);
    for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default();
        if stem == "tests" || stem == "testing" {
            continue;
        }
        if path.is_dir() {
            sources(&path, files)?;
        } else {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            files.push(code.to_owned());
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    Word(String),
    Mark(char),
}

/// Strings, words and other characters of Rust, without its comments.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '/' && rest.peek() == Some(&'/') {
            while rest.next_if(|c| *c != '\n').is_some() {}
        } else if c == '"' {
            tokens.push(Token::Text(text(&mut rest)));
        } else if c.is_alphanumeric() || c == '_' {
            let mut word = c.to_string();
            while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(c);
            }
            tokens.push(Token::Word(word));
        } else if c == '\'' {
            // A character, or a lifetime, which is a word.
            let mut ahead = rest.clone();
            if ahead.next() == Some('\\') || ahead.next() == Some('\'') {
                let escaped = rest.next() == Some('\\');
                rest.nth(usize::from(escaped));
            }
        } else if !c.is_whitespace() {
            tokens.push(Token::Mark(c));
        }
    }
    tokens
}

/// The rest of a string; a line's end behind a backslash is none.
fn text(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            '"' => break,
            '\\' => match rest.next() {
                Some('\n') => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                Some(escaped) => text.push(escaped),
                None => {}
            },
            c => text.push(c),
        }
    }
    text
}

fn is_name(text: &str) -> bool {
    let rest = ["kiam_", "grpc_"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_{}".contains(c);
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_part))
}

/// The metrics that a file makes: a string that is a metric's name, the string behind it, and the
/// nearest word before it that says what it makes.
fn scan(source: &str) -> Vec<(String, Metric)> {
    let tokens = tokens(source);
    let names = tokens
        .iter()
        .enumerate()
        .filter_map(|(at, token)| match token {
            Token::Text(text) if is_name(text) => Some((at, text)),
            _ => None,
        });
    let names: Vec<_> = names.collect();
    let ends = names
        .iter()
        .skip(1)
        .map(|(at, _)| *at)
        .chain([tokens.len()]);
    let found = names.iter().zip(ends).filter_map(|((at, name), end)| {
        let after = tokens.get(at + 1..end)?;
        let mut texts = after
            .iter()
            .enumerate()
            .filter_map(|(at, token)| match token {
                Token::Text(text) => Some((at, text)),
                _ => None,
            });
        let (help_at, help) = texts.next()?;
        let maker = tokens.get(..*at)?.iter().rev().find_map(maker)?;
        let metric = Metric {
            kind: maker.kind,
            help: help.clone(),
            labels: labels(after.get(help_at + 1..)?, &maker),
        };
        Some(((*name).clone(), metric))
    });
    found.collect()
}

struct Maker {
    kind: &'static str,
    is_plain: bool,
}

/// Prometheus' types, and the closures named after them that register what they make.
fn maker(token: &Token) -> Option<Maker> {
    let Token::Word(word) = token else {
        return None;
    };
    let (kind, is_plain) = match word.as_str() {
        "IntCounter" | "Counter" => ("counter", true),
        "IntCounterVec" | "CounterVec" | "counter" | "counters" => ("counter", false),
        "IntGauge" | "Gauge" => ("gauge", true),
        "IntGaugeVec" | "GaugeVec" | "gauge" | "gauges" => ("gauge", false),
        "Histogram" => ("histogram", true),
        "HistogramVec" | "histogram" | "histograms" => ("histogram", false),
        _ => return None,
    };
    Some(Maker { kind, is_plain })
}

/// `&["a", "b"]`, or one string as the next argument.
fn labels(after: &[Token], maker: &Maker) -> Vec<String> {
    if maker.is_plain {
        return Vec::new();
    }
    if let [Token::Mark(','), Token::Text(label), ..] = after {
        return vec![label.clone()];
    }
    let begin = after
        .windows(2)
        .position(|pair| pair == [Token::Mark('&'), Token::Mark('[')]);
    // A closure's call that ends first takes none.
    let ends = after
        .windows(2)
        .position(|pair| pair == [Token::Mark(')'), Token::Mark('?')]);
    let is_const = matches!(after.first(), Some(Token::Mark(';')));
    let Some(begin) = begin.filter(|begin| is_const || ends.is_none_or(|end| *begin < end)) else {
        return Vec::new();
    };
    let listed = after.iter().skip(begin + 2);
    let listed = listed.take_while(|token| **token != Token::Mark(']'));
    let texts = listed.filter_map(|token| match token {
        Token::Text(text) => Some(text.clone()),
        _ => None,
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_however_they_are_made() {
        let found = scan(
            r#"
            use prometheus::{IntCounterVec, Opts}; // "kiam_comment_total", "not one"
            const NAME: &str = "kiam_kernel_total"; const HELP: &str = "Of the kernel.";
            fn shape() { IntCounterVec::new(Opts::new(NAME, HELP), &["hook", "verdict"]) }
            let latency = HistogramVec::new(
                HistogramOpts::new("kiam_latency_seconds", "How \
                    long.").buckets(buckets.clone()), &["handler"])?;
            let waits = Histogram::with_opts(HistogramOpts::new("kiam_wait_seconds", "Waits."))?;
            let size = IntGauge::new("kiam_size", "Size.")?;
            let c = ('"', '\'', '\\', &'a);
            blocked: counter("kiam_blocked_total", "Blocked.")?,
            ends: counter("kiam_ends_total", "Ends.", "reason")?,
            refusals: counters("kiam_refusals_total", "Refusals.", &["reason"])?,
            Gauge::with_opts(Opts::new(format!("grpc_{side}_expiry"), "Expiry."))?;
            "kiam_no metric"
            "#,
        );
        let found: Vec<_> = found
            .iter()
            .map(|(name, Metric { kind, help, labels })| {
                format!("{name} {kind} {help} {}", labels.join(","))
            })
            .collect();
        assert_eq!(
            found,
            [
                "kiam_kernel_total counter Of the kernel. hook,verdict",
                "kiam_latency_seconds histogram How long. handler",
                "kiam_wait_seconds histogram Waits. ",
                "kiam_size gauge Size. ",
                "kiam_blocked_total counter Blocked. ",
                "kiam_ends_total counter Ends. reason",
                "kiam_refusals_total counter Refusals. reason",
                "grpc_{side}_expiry gauge Expiry. ",
            ]
        );
    }
}
