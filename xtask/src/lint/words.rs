//! Words that docs, comments and messages do without: the list in `docs/style.md`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use regex::RegexSet;
use toolchain::exec;

use super::Finding;

/// The page with the list.
const PAGE: &str = "docs/style.md";

/// Files with words that people read.
const READ: &[&str] = &[
    "*.md", "*.proto", "*.rs", "*.toml", "*.tpl", "*.txt", "*.yaml", "*.yml",
];

/// Banned phrases, each with its replacement.
#[derive(Debug)]
struct Banned {
    phrases: RegexSet,
    replacements: Vec<String>,
}

/// Finds banned words in all files of the repository but the page that lists them.
pub(super) fn check(root: &Path, findings: &mut Vec<Finding>) -> Result<()> {
    let page =
        std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let banned = Banned::parse(&page)?;
    let mut files = Command::new("git");
    files
        .arg("-C")
        .arg(root)
        .args(["ls-files", "--"])
        .args(READ);
    for name in exec(&mut files)?.lines().filter(|name| *name != PAGE) {
        let file = root.join(name);
        // Removed, and not committed yet.
        if !file.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
        for (line, problem) in banned.find(&text) {
            findings.push(Finding {
                file: file.clone(),
                line,
                problem,
                rule: "docs/style.md lists words to do without",
            });
        }
    }
    Ok(())
}

impl Banned {
    /// Reads the block `banned` of a page: `phrase -> replacement` on each line.
    fn parse(page: &str) -> Result<Self> {
        let block = page.split("```banned\n").nth(1);
        let block = block.and_then(|rest| rest.split("```").next());
        let block = block.with_context(|| format!("{PAGE} has no block ```banned"))?;
        let mut phrases = Vec::new();
        let mut replacements = Vec::new();
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (phrase, replacement) = line
                .split_once(" -> ")
                .with_context(|| format!("{PAGE}: `{line}` is not `phrase -> replacement`"))?;
            phrases.push(format!(r"(?i)\b{}\b", regex::escape(phrase.trim())));
            replacements.push(replacement.trim().to_owned());
        }
        let phrases = RegexSet::new(phrases).context("cannot read banned phrases")?;
        Ok(Self {
            phrases,
            replacements,
        })
    }

    /// Lines with banned phrases, by their number.
    fn find(&self, text: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (at, line) in text.lines().enumerate() {
            for phrase in self.phrases.matches(line) {
                if let Some(replacement) = self.replacements.get(phrase) {
                    found.push((at + 1, format!("write {replacement}: {}", line.trim())));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_phrases_are_found_by_line_in_any_case() {
        let page = "# Style\n\n```banned\nolden -> old\nin days of yore -> earlier\n```\n";
        let banned = Banned::parse(page).unwrap();
        let found =
            banned.find("It begins Olden.\nsolden\nSeen in days\nof yore; in days of yore.");
        assert_eq!(
            found,
            [
                (1, "write old: It begins Olden.".to_owned()),
                (4, "write earlier: of yore; in days of yore.".to_owned()),
            ]
        );
    }

    #[test]
    fn a_page_without_a_list_is_an_error() {
        assert!(Banned::parse("# Style\n").is_err());
        assert!(Banned::parse("```banned\nword\n```\n").is_err());
    }
}
