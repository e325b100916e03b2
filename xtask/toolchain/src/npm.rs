//! JavaScript packages that a lock file pins, by npm.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::Log;

/// Installs what `sources` locks into `folder`. No script of a package runs.
pub fn install(sources: &Path, folder: &Path, log: &Log) -> Result<()> {
    for name in ["package.json", "package-lock.json"] {
        std::fs::copy(sources.join(name), folder.join(name))
            .with_context(|| format!("cannot copy {name}"))?;
    }
    let mut command = Command::new("npm");
    command.current_dir(folder).args([
        "ci",
        "--omit=dev",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    ]);
    log.exec(&mut command)
}
