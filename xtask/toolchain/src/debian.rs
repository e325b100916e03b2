//! Debian's packages of several suites, looked up and fetched beside the machine's own apt: with
//! lists, caches and sources in a folder of our own.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::Architecture;
use crate::Log;
use crate::exec;

const MIRROR: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt's option by which lists of a mirror that lags behind are taken: they are signed, and what
/// runs on them is thrown away.
pub const LATE_MIRROR: &str = "Acquire::Check-Valid-Until=false";

/// Suite of packages: an archive and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    archive: &'static str,
    name: Cow<'static, str>,
}

/// Debian's development suite.
pub const SID: Suite = Suite::new("debian", "sid");

impl Suite {
    /// Suite of an archive: `debian` or `debian-security`.
    pub const fn new(archive: &'static str, name: &'static str) -> Self {
        Self {
            archive,
            name: Cow::Borrowed(name),
        }
    }

    /// Packages of this machine's release, from `/etc/os-release`.
    pub fn of_this_machine(os_release: &str) -> Result<[Self; 2]> {
        let value = |name: &str| {
            let line = os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let (id, name) = (value("ID"), value("VERSION_CODENAME"));
        ensure!(
            id == "debian" && !name.is_empty(),
            "packages of another architecture are taken from a release of Debian, and this is \
             {id:?} {name:?}"
        );
        let security = format!("{name}-security");
        let suite = |archive, name| Self {
            archive,
            name: Cow::Owned(name),
        };
        Ok([suite("debian", name), suite("debian-security", security)])
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Line of `sources.list`.
    pub fn source(&self) -> String {
        let Self { archive, name } = self;
        format!("deb [signed-by={KEYRING}] {MIRROR}/{archive} {name} main")
    }
}

/// Package lists of some suites, in a folder.
#[derive(Debug)]
pub struct Lists {
    folder: PathBuf,
    architecture: Architecture,
}

impl Lists {
    /// Fetches the lists of these suites into a folder.
    pub fn fetch(
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
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = exec(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them into a folder, without running anything of theirs.
    pub fn unpack(&self, packages: &[String], into: &Path, log: &Log) -> Result<()> {
        for package in self.download(packages, log)? {
            log.exec(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into))?;
            std::fs::remove_file(&package)?;
        }
        Ok(())
    }

    /// Unpacks packages, and all that they depend on, into a folder, as they would be installed
    /// there; dpkg's own tools find there whose a file is. Nothing of theirs is run.
    pub fn install(&self, packages: &[&str], root: &Path, log: &Log) -> Result<()> {
        let info = root.join("var/lib/dpkg/info");
        std::fs::create_dir_all(&info)?;
        // As Debian has it: everything is below /usr.
        for name in ["bin", "lib", "lib64", "sbin"] {
            std::fs::create_dir_all(root.join("usr").join(name))?;
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        let mut depends = self.apt("apt-cache");
        depends.args(["depends", "--recurse", "--important"]);
        let names = exec(depends.args(packages))?;
        let names = names
            .lines()
            .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()));
        let names: Vec<_> = names.map(str::to_owned).collect();
        let mut status = String::new();
        for package in self.download(&names, log)? {
            let files = extract(&package, root)?;
            let control = exec(Command::new("dpkg-deb").arg("-f").arg(&package))?;
            std::fs::remove_file(&package)?;
            let name = control
                .lines()
                .find_map(|line| line.strip_prefix("Package: "));
            let name = name.context("a package has a name")?;
            std::fs::write(info.join(format!("{name}.list")), files)?;
            write!(
                status,
                "{}\nStatus: install ok installed\n\n",
                control.trim()
            )?;
        }
        std::fs::write(root.join("var/lib/dpkg/status"), status)
            .context("cannot write dpkg's status")
    }

    /// Fetches packages. Their files.
    fn download(&self, packages: &[String], log: &Log) -> Result<Vec<PathBuf>> {
        let fetched = self.folder.join("fetched");
        std::fs::create_dir_all(&fetched)?;
        let mut download = self.apt("apt-get");
        download.arg("download").args(packages);
        log.exec(download.current_dir(&fetched))?;
        let files = std::fs::read_dir(&fetched)?;
        let files = files.map(|file| file.map(|file| file.path()));
        files
            .collect::<Result<_, _>>()
            .context("cannot list the fetched packages")
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

/// Unpacks a package's files; folders that are links stay what they are. Returns the list of them,
/// as dpkg keeps it.
fn extract(package: &Path, root: &Path) -> Result<String> {
    let archive = package.with_extension("tar");
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(package);
    let read = read.stdout(File::create(&archive)?).status()?;
    ensure!(read.success(), "cannot read {}", package.display());
    let mut tar = Command::new("tar");
    tar.args(["-x", "--verbose", "--keep-directory-symlink", "-C"]);
    let output = exec(tar.arg(root).arg("-f").arg(&archive))?;
    std::fs::remove_file(&archive)?;
    let mut list = String::new();
    for file in output.lines() {
        let file = file.trim_start_matches('.').trim_end_matches('/');
        list += if file.is_empty() { "/." } else { file };
        list += "\n";
    }
    Ok(list)
}

/// Newest package of these names, by the numbers in them.
pub fn newest<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let numbers = |name: &String| -> Vec<u64> {
        let parts = name.split(|character: char| !character.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    names.into_iter().max_by_key(|name| numbers(name))
}

/// Fails if the keys to check Debian's signatures are missing.
pub fn check_keyring() -> Result<()> {
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
    fn the_suites_of_a_release_are_those_that_it_names() {
        let suites = Suite::of_this_machine("ID=debian\nVERSION_CODENAME=\"trixie\"\n").unwrap();
        let names = suites.each_ref().map(Suite::name);
        assert_eq!(names, ["trixie", "trixie-security"]);
        let error = Suite::of_this_machine("ID=ubuntu\nVERSION_CODENAME=noble\n").unwrap_err();
        assert!(
            error.to_string().contains("\"ubuntu\" \"noble\""),
            "{error}"
        );
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
