//! Debian packages.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{exec, find_program};

/// A Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Purpose, shown before it is installed.
    pub why: &'static str,
}

/// Installs packages; first completes an interrupted run of dpkg.
pub(super) fn install(packages: &[Package]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!(
            "this system has no apt-get. Install by its own means what these Debian packages \
             hold, and run this again:{}",
            list(packages)
        );
    }
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let install = || apt(&["install", "--yes", "--no-install-recommends"], &names);
    // The lists of a fresh machine are empty, and those of an old one name what is gone. Where only
    // some of a machine's sources can be read, these may do.
    let update = apt(&["update"], &[]);
    if install().is_ok() {
        return Ok(());
    }
    exec(Command::new("dpkg").args(["--configure", "-a"]))?;
    apt(&["install", "--fix-broken", "--yes"], &[])?;
    match (install(), update) {
        (Ok(()), _) => Ok(()),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(update)) => {
            Err(error).with_context(|| format!("the lists are not up to date: {update}"))
        }
    }
}

fn list(packages: &[Package]) -> String {
    let line = |Package { name, why }: &Package| format!("\n  {name:<14} {why}");
    packages.iter().map(line).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_listed_with_their_purposes() {
        let why = "makes namespaces";
        let text = list(&[Package {
            name: "iproute2",
            why,
        }]);
        assert_eq!(text, "\n  iproute2       makes namespaces");
    }
}
