//! Reports for operators: as JSON, and as pages of tables, without scripts, and with one style that
//! is known by its hash. Everything on a page that is not a tag of its own is escaped.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::admin::{Answer, text, with_type};
use crate::duration;

/// Of any text that comes from elsewhere, in characters.
const MAX_TEXT_CHARS: usize = 500;
/// How a page looks. The policy below lets no other style in.
const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #d0d7de;overflow-wrap:break-word}th{background:#f6f8fa;white-space:nowrap}td:first-child{font-weight:600}";

/// Nothing of a page may run, load, be framed or be sent anywhere, or be kept.
const GUARDS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'sha256-xnh70vghLycg2EihwM5T6oA7S6OMcTixVtQN2E7Bw40='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
];

/// A report for programs.
#[must_use]
pub fn json(report: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(report) {
        Ok(body) => guarded(with_type(StatusCode::OK, "application/json", body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// A [`document`] for people.
#[must_use]
pub fn html(document: String) -> Answer {
    let kind = "text/html; charset=utf-8";
    guarded(with_type(StatusCode::OK, kind, document))
}

fn guarded(mut answer: Answer) -> Answer {
    for (name, value) in GUARDS {
        let value = HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// A whole page of these elements.
#[must_use]
pub fn document(title: &str, elements: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n{elements}</body></html>\n"
    )
}

/// A table; every cell is escaped.
#[must_use]
pub fn table<const N: usize>(
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let row = |tag: &str, cells: &[&str]| {
        let cells: String = cells.iter().map(|cell| element(tag, cell)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = row("th", &columns);
    let rows: String = rows
        .map(|cells| row("td", &cells.each_ref().map(String::as_str)))
        .collect();
    format!("<table>\n{head}{rows}</table>\n")
}

/// One element; its text is escaped.
#[must_use]
pub fn element(tag: &str, text: &str) -> String {
    format!("<{tag}>{}</{tag}>\n", escaped(text))
}

/// As text between tags; control characters would be no valid HTML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character if character.is_control() => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Cut to a length that a report can bear.
#[must_use]
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A number of seconds, to read.
#[must_use]
pub fn readable(seconds: u64) -> String {
    duration::format(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_policy_lets_in_the_page_s_own_style_and_no_other() {
        let hash = STANDARD.encode(Sha256::digest(STYLE));
        let policy = html(document("x", "")).headers()[header::CONTENT_SECURITY_POLICY].clone();
        let policy = policy.to_str().unwrap();
        assert!(
            policy.contains(&format!("style-src 'sha256-{hash}';")),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"));
    }

    #[test]
    fn what_is_no_tag_of_the_page_s_own_is_escaped() {
        let hostile = "<b>&\"'\u{1b}";
        let page = document(
            hostile,
            &table([hostile], [[hostile.to_owned()]].into_iter()),
        );
        let escaped = "&lt;b&gt;&amp;&quot;&#39;\u{fffd}";
        assert_eq!(page.matches(escaped).count(), 3, "{page}");
        assert!(!page.contains("<b>"), "{page}");
    }
}
