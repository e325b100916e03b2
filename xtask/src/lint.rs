//! The command `lint`: formatting, clippy and rustdoc without a warning, the project's own rules,
//! current reference pages, and the dependencies' licenses and sources.
//!
//! ```text
//! cycles     packages and files have no import cycle
//! help       flags, commands and values have a help text
//! metrics    metrics are on the reference page
//! words      docs, comments and messages do without the words that docs/style.md lists
//! sources    files that these checks read
//! ```

mod cycles;
mod help;
mod metrics;
mod sources;
mod words;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use toolchain::{Cache, workspace};

use crate::deploy::reference;
use crate::manifests;

/// The version of cargo-deny that is used.
const DENY: &str = "0.20.2";

/// Flags of `cargo xtask lint`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs all checks, and stops at the first that finds something.
///
/// # Errors
/// Fails when a check finds something, or cannot be run.
pub fn run(_args: &Args) -> anyhow::Result<()> {
    let root = workspace();
    rules(&root)?;
    let cargo = |arguments: &[&str]| check(Command::new("cargo").args(arguments), &root);
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?;
    check(
        Command::new("cargo")
            .args([
                "doc",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
        &root,
    )?;
    reference::check()?;
    let deny = cargo_deny()?;
    check(
        Command::new(deny).args([
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ]),
        &root,
    )
}

/// A line that breaks a rule.
#[derive(Debug)]
struct Finding {
    file: PathBuf,
    line: usize,
    problem: String,
    rule: &'static str,
}

/// Checks the project's own rules, and lists all lines that break one.
#[expect(clippy::print_stderr, reason = "the command's result")]
fn rules(root: &Path) -> anyhow::Result<()> {
    let manifests = manifests::read(root)?;
    let sources = sources::read(&manifests)?;
    let mut findings = Vec::new();
    cycles::check(root, &manifests, &sources, &mut findings);
    help::check(&sources, &mut findings)?;
    metrics::check(root, &sources, &mut findings)?;
    words::check(root, &mut findings)?;
    for finding in &findings {
        let file = finding.file.strip_prefix(root).unwrap_or(&finding.file);
        let Finding {
            line,
            problem,
            rule,
            ..
        } = finding;
        eprintln!("{}:{line}: {problem} ({rule})", file.display());
    }
    let count = findings.len();
    ensure!(count == 0, "{count} lines break a rule of the project");
    Ok(())
}

/// cargo-deny, built once into the cache folder.
#[expect(clippy::print_stderr, reason = "shows progress to the user")]
fn cargo_deny() -> anyhow::Result<PathBuf> {
    let cache = Cache::new(&format!("cargo-deny-{DENY}"));
    if !cache.is_complete() {
        eprintln!("building cargo-deny {DENY}, which reads licences and versions (about 4 min)");
    }
    cache.fill(|folder, log| {
        let mut install = Command::new("cargo");
        install.args([
            "install",
            "cargo-deny",
            "--version",
            DENY,
            "--locked",
            "--root",
        ]);
        log.exec(install.arg(folder))
    })?;
    Ok(cache.path().join("bin/cargo-deny"))
}

fn check(command: &mut Command, root: &Path) -> anyhow::Result<()> {
    let status = command
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let name = Path::new(command.get_program()).display();
    ensure!(
        status.success(),
        "{name} {} found something ({status})",
        arguments.join(" ")
    );
    Ok(())
}
