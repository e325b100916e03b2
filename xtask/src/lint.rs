//! The command `lint`: format, clippy without a warning, documentation without a warning, reference
//! pages that are as the programs are, and what the dependencies are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use toolchain::{Cache, workspace};

use crate::deploy::reference;

/// The version of cargo-deny that is used.
const DENY: &str = "0.20.2";

/// Flags of `cargo xtask lint`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs all of it, and stops at the first that finds something.
///
/// # Errors
/// When something is found, or cannot be run.
pub fn run(_args: &Args) -> anyhow::Result<()> {
    let root = workspace();
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

/// cargo-deny, built once into the cache folder.
#[expect(clippy::print_stderr, reason = "tells whoever is waiting")]
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
