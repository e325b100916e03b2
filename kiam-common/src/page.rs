//! Reports on the admin port: JSON, and HTML pages of tables. Pages have no scripts, and a single
//! style that the content security policy allows by its hash. All text is escaped.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::admin::{PageResponse, text, with_type};
use crate::duration;

/// The longest text from an outside source, in characters.
const MAX_TEXT_CHARS: usize = 500;
/// The style of all pages. The content security policy below contains its hash.
const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #d0d7de;overflow-wrap:break-word}th{background:#f6f8fa;white-space:nowrap}td:first-child{font-weight:600}";

/// Headers that forbid a page to run scripts, load resources, be framed, submit forms, or be
/// cached.
const GUARDS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'sha256-xnh70vghLycg2EihwM5T6oA7S6OMcTixVtQN2E7Bw40='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
];

/// A response of JSON.
pub fn json(report: &impl Serialize) -> PageResponse {
    match serde_json::to_vec_pretty(report) {
        Ok(body) => guarded(with_type(StatusCode::OK, "application/json", body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// A response of HTML, made by [`document`].
pub fn html(document: String) -> PageResponse {
    let kind = "text/html; charset=utf-8";
    guarded(with_type(StatusCode::OK, kind, document))
}

fn guarded(mut response: PageResponse) -> PageResponse {
    for (name, value) in GUARDS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// A complete HTML document. The elements must be escaped already; the title is escaped here.
pub fn document(title: &str, elements: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n{elements}</body></html>\n"
    )
}

/// An HTML table. Cells are escaped.
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

/// An HTML element. Its text is escaped.
pub fn element(tag: &str, text: &str) -> String {
    format!("<{tag}>{}</{tag}>\n", escaped(text))
}

/// Escapes text, and replaces control characters, which are invalid in HTML.
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

/// Truncates a text to the longest length that a report contains.
pub fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Formats seconds for people.
pub fn format_seconds(seconds: u64) -> String {
    duration::format(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_content_security_policy_allows_only_the_style_of_the_page() {
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
    fn titles_and_cells_are_escaped() {
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
