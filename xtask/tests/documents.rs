//! The documents name only tests, files and metrics that exist.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// All Rust files below a folder, as one text.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn tests_that_the_comparison_with_kiam_names_exist() {
    let mut all = String::new();
    for folder in ["kiam-agent", "kiam-common", "kiam-server"] {
        sources(&root().join(folder), &mut all);
    }
    let page = std::fs::read_to_string(root().join("docs/kiam-compatibility.md")).unwrap();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let here = row.splitn(3, '|').nth(2).unwrap_or(row);
        for name in quoted(here) {
            if name.ends_with(".rs") {
                assert!(root().join(name).is_file(), "there is no {name}");
            } else if name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            {
                assert!(
                    all.contains(&format!("fn {name}(")),
                    "there is no test {name}"
                );
                named += 1;
            }
        }
    }
    assert!(named > 30, "only {named} tests are named");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap().flatten();
    pages.extend(docs.map(|entry| entry.path()));
    for folder in ["docs/adr", "docs/runbooks", "docs/reference"] {
        let below = std::fs::read_dir(root().join(folder)).unwrap().flatten();
        pages.extend(below.map(|entry| entry.path()));
    }
    pages.push(root().join("deploy/helm/kiam/README.md"));
    let mut links = 0;
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|end| end == "md"))
    {
        let text = std::fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let found = page.parent().unwrap().join(target);
            assert!(found.exists(), "{} links to {target}", page.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links were found");
}

/// Words that look like a metric of ours.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.split(word)
        .filter(|word| word.starts_with("kiam_") || word.starts_with("grpc_"))
}

#[test]
fn metrics_that_dashboards_ask_for_exist() {
    let page = std::fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let dashboards = std::fs::read_dir(root().join("deploy/grafana")).unwrap();
    let files: Vec<_> = dashboards.flatten().map(|entry| entry.path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut asked = 0;
        for name in metrics(&text) {
            // A histogram's series have an end of their own.
            let ends = ["_bucket", "_sum", "_count"];
            let base = ends.iter().find_map(|end| name.strip_suffix(end));
            let known = |name: &str| page.contains(&format!("`{name}`"));
            let known = known(name) || base.is_some_and(known);
            assert!(
                known,
                "{} asks for {name}, which is no metric",
                file.display()
            );
            asked += 1;
        }
        assert!(asked > 3, "{} asks for {asked} metrics", file.display());
    }
}

/// All pages below docs/.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

#[test]
fn tests_that_the_threat_model_names_exist() {
    let mut all = String::new();
    for folder in ["kiam-agent", "kiam-common", "kiam-server"] {
        sources(&root().join(folder), &mut all);
    }
    let in_sandbox = |module: &str| {
        let file = root().join(format!("xtask/suites/tests/sandbox/{module}.rs"));
        std::fs::read_to_string(file).unwrap_or_default()
    };
    let page = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let mut named = 0;
    // What it tries to, what stops it, shown by.
    for row in page.lines().filter(|line| line.matches('|').count() == 4) {
        let Some((_, shown)) = row.trim_end_matches(" |").rsplit_once(" | ") else {
            continue;
        };
        for name in quoted(shown) {
            let exists = if name.ends_with(".rs") {
                root().join(name).is_file()
            } else if let Some((module, name)) = name.split_once("::") {
                in_sandbox(module).contains(&format!("fn {name}("))
            } else {
                all.contains(&format!("fn {name}("))
            };
            assert!(exists, "there is no test {name}");
            named += 1;
        }
    }
    assert!(named > 15, "only {named} tests are named");
}

#[test]
fn metrics_that_pages_name_exist() {
    let known = std::fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let mut found = Vec::new();
    pages(&root().join("docs"), &mut found);
    for page in found {
        // Which names kiam's own files and tests.
        if page.ends_with("kiam-compatibility.md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        // One underscore: a crate.
        for name in metrics(&text).filter(|name| name.matches('_').count() > 1) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let is_known = |name: &str| known.contains(&format!("`{name}`"));
            assert!(
                is_known(name) || base.is_some_and(is_known),
                "{} names {name}, which is no metric",
                page.display()
            );
        }
    }
}

#[test]
fn the_book_has_every_page() {
    let docs = root().join("docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut found = Vec::new();
    pages(&docs, &mut found);
    for page in found {
        let name = page.strip_prefix(&docs).unwrap().to_str().unwrap();
        if name != "SUMMARY.md" {
            assert!(
                summary.contains(&format!("]({name})")),
                "{name} is not in SUMMARY.md"
            );
        }
    }
}
