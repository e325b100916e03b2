//! Debian packages.

use std::process::Command;

use anyhow::{Result, bail};

use super::find_program;
use crate::sandbox::exec;

/// Installs packages; first finishes what an interrupted run of dpkg left.
pub(super) fn install(names: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!(
            "this system has no apt-get. Install what these Debian packages hold, by your system's \
             own means, and run this again: {}",
            names.join(" ")
        );
    }
    let install = || apt(&["install", "--yes", "--no-install-recommends"], names);
    // The lists of a fresh machine are empty, and those of an old one name what is gone.
    apt(&["update"], &[])?;
    if install().is_ok() {
        return Ok(());
    }
    exec(Command::new("dpkg").args(["--configure", "-a"]))?;
    apt(&["install", "--fix-broken", "--yes"], &[])?;
    install()
}

fn apt(verb: &[&str], names: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Another apt may be at work: unattended upgrades, say.
        .args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
        .args(verb)
        .args(names);
    exec(&mut command).map(drop)
}
