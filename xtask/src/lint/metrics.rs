//! Metrics that are not on the reference page. Tests name some that are not real.

use std::path::Path;

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};

use super::Finding;
use super::sources::Source;

/// The page.
const PAGE: &str = "docs/reference/metrics.md";

/// Packages that make metrics.
const PACKAGES: &[&str] = &["kiam-agent", "kiam-common", "kiam-server"];

/// Modules for tests.
const TESTS: &[&str] = &["testing", "tests"];

/// Finds strings that are a metric's name and that the reference page does not have.
pub(super) fn check(root: &Path, sources: &[Source], findings: &mut Vec<Finding>) -> Result<()> {
    let page =
        std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let programs = sources
        .iter()
        .filter(|source| source.is_program && PACKAGES.contains(&&*source.package));
    let files = programs.flat_map(|source| &source.parsed.files);
    let is_test = |module: &[String]| module.iter().any(|it| TESTS.contains(&&**it));
    for (_, file, tokens) in files.filter(|(module, ..)| !is_test(module)) {
        let mut names = Vec::new();
        strings(tokens.clone(), &mut names);
        for (line, name) in names {
            if is_name(&name) && !is_on(&page, &name) {
                findings.push(Finding {
                    file: file.clone(),
                    line,
                    problem: format!("metric {name} is not in {PAGE}"),
                    rule: "each metric is documented; `cargo xtask docs` writes the page",
                });
            }
        }
    }
    Ok(())
}

fn strings(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let mut is_test = false;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => is_test = TESTS.iter().any(|it| name == it),
            TokenTree::Group(_) if is_test => is_test = false,
            TokenTree::Group(group) => strings(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let text = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
                if let Some(text) = text {
                    found.push((literal.span().start().line, text.to_owned()));
                }
            }
            _ => {}
        }
    }
}

fn is_name(text: &str) -> bool {
    let rest = ["kiam_", "grpc_"]
        .iter()
        .find_map(|it| text.strip_prefix(it));
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_{}".contains(c);
    // One that ends so is a prefix of several.
    rest.is_some_and(|rest| rest.chars().all(is_part) && !rest.is_empty() && !rest.ends_with('_'))
}

/// `{side}` in a name stands for any word.
fn is_on(page: &str, name: &str) -> bool {
    let mut parts = name.split(['{', '}']);
    let first = parts.next().unwrap_or_default();
    match parts.nth(1) {
        None => page.contains(&format!("`{name}`")),
        Some(last) => page
            .split('`')
            .any(|word| word.starts_with(first) && word.ends_with(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinguished_from_other_strings_and_looked_up() {
        let mut found = Vec::new();
        let code = "fn f() {\n new(\"kiam_one_total\", \"Help.\"); format!(\"grpc_{side}_end\");\n \"kiam_\" }\nmod tests { \"kiam_test_total\" }";
        strings(code.parse().unwrap(), &mut found);
        let names: Vec<_> = found.iter().filter(|(_, name)| is_name(name)).collect();
        assert_eq!(
            names,
            [
                &(2, "kiam_one_total".to_owned()),
                &(2, "grpc_{side}_end".to_owned())
            ]
        );
        let page = "| `kiam_one_total` | `grpc_server_end` |";
        assert!(is_on(page, "kiam_one_total"));
        assert!(!is_on(page, "kiam_one"));
        assert!(is_on(page, "grpc_{side}_end"));
        assert!(!is_on(page, "grpc_{side}_begin"));
    }
}
