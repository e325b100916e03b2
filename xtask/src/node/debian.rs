//! Debian's packages of several suites, looked up and fetched beside the machine's own apt: with
//! lists, caches and sources in a folder of our own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Architecture;
use crate::sandbox::exec;
use crate::setup::Log;

const MIRROR: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt's option by which lists of a mirror that lags behind are taken: they are signed, and what runs
/// on them is thrown away.
pub(super) const LATE_MIRROR: &str = "Acquire::Check-Valid-Until=false";

/// Suite of packages: an archive and a name in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suite {
    archive: &'static str,
    name: &'static str,
}

/// Debian's development suite.
pub(super) const SID: Suite = Suite::new("debian", "sid");

impl Suite {
    pub(super) const fn new(archive: &'static str, name: &'static str) -> Self {
        Self { archive, name }
    }

    pub(super) const fn name(self) -> &'static str {
        self.name
    }

    /// Line of `sources.list`.
    pub(super) fn source(self) -> String {
        let Self { archive, name } = self;
        format!("deb [signed-by={KEYRING}] {MIRROR}/{archive} {name} main")
    }
}

/// Package lists of some suites, in a folder.
#[derive(Debug)]
pub(super) struct Lists {
    folder: PathBuf,
    architecture: Architecture,
}

impl Lists {
    /// Fetches the lists of these suites into a folder.
    pub(super) fn fetch(
        folder: &Path,
        architecture: Architecture,
        suites: &[Suite],
        log: &Log,
    ) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let sources: String = suites.iter().map(|suite| suite.source() + "\n").collect();
        std::fs::write(folder.join("sources.list"), sources)?;
        let lists = Self {
            folder: folder.to_owned(),
            architecture,
        };
        log.exec(lists.apt("apt-get").arg("update"))?;
        Ok(lists)
    }

    /// Names of the packages that begin with this.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = exec(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them into a folder, without running anything of theirs.
    pub(super) fn unpack(&self, packages: &[String], into: &Path, log: &Log) -> Result<()> {
        let fetched = self.folder.join("fetched");
        std::fs::create_dir_all(&fetched)?;
        log.exec(
            self.apt("apt-get")
                .arg("download")
                .args(packages)
                .current_dir(&fetched),
        )?;
        for package in std::fs::read_dir(&fetched)? {
            let package = package?.path();
            log.exec(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into))?;
        }
        std::fs::remove_dir_all(&fetched)?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        command.arg("-qq");
        for option in [
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}"),
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            "APT::Sandbox::User=root".into(),
            LATE_MIRROR.into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Newest package of these names, by the numbers in them.
pub(super) fn newest<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let numbers = |name: &String| -> Vec<u64> {
        let parts = name.split(|character: char| !character.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    names.into_iter().max_by_key(|name| numbers(name))
}

/// Fails with what is missing to check Debian's signatures.
pub(super) fn check_keyring() -> Result<()> {
    if !Path::new(KEYRING).is_file() {
        bail!("there is no {KEYRING}; install Debian's package debian-archive-keyring");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_by_numbers_and_not_by_letters() {
        let names = [
            "linux-image-6.12.95+deb12-x",
            "linux-image-6.12.117+deb12-x",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names), Some(&names[1]));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn sources_are_signed() {
        let line = SID.source();
        assert!(
            line.contains("[signed-by=") && line.ends_with("/debian sid main"),
            "{line}"
        );
    }
}
