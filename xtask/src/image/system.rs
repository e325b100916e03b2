//! The Debian that an image's libraries and iptables are taken from: this machine's own, or
//! packages of the same release for another architecture, unpacked into a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::{Architecture, Cache, Package, Plan, Step, exec, find_program, fingerprint};

use toolchain::debian::{Lists, Suite, check_keyring};

pub(super) const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An installed Debian.
#[derive(Debug)]
pub(super) struct System {
    architecture: Architecture,
    /// Its path, without symbolic links.
    root: PathBuf,
}

/// Adds what is missing to build for an architecture and to make its image.
pub(super) fn plan(architecture: Architecture, plan: &mut Plan) {
    let goes = "goes into the image";
    if !Path::new(AUTHORITIES).is_file() {
        plan.package(Package {
            name: "ca-certificates",
            why: goes,
        });
    }
    if architecture.is_native() {
        if find_program("xtables-nft-multi").is_none() {
            plan.package(Package {
                name: "iptables",
                why: goes,
            });
        }
        return;
    }
    let (compiler, library) = match architecture {
        Architecture::Amd64 => ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
        Architecture::Arm64 => ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    };
    if find_program(&architecture.linker()).is_none() {
        for name in [compiler, library] {
            plan.package(Package {
                name,
                why: "compiles for the other architecture",
            });
        }
    }
    if find_program(&emulator(architecture)).is_none() {
        plan.package(Package {
            name: "qemu-user",
            why: "runs the image's programs",
        });
    }
    if check_keyring().is_err() {
        plan.package(Package {
            name: "debian-archive-keyring",
            why: "checks Debian's signatures",
        });
    }
    let target = architecture.target();
    plan.step(Step {
        what: format!("Rust's library for {target}, by rustup"),
        why: "compiles for the other architecture",
        about: Some(Duration::from_secs(10)),
        run: Box::new(move || {
            exec(Command::new("rustup").args(["target", "add", target])).map(drop)
        }),
    });
    let Ok(cache) = cache(architecture) else {
        return;
    };
    if !cache.is_complete() {
        plan.step(Step {
            what: format!(
                "Debian's iptables for {architecture}, unpacked into {}",
                cache.path().display()
            ),
            why: goes,
            about: Some(Duration::from_secs(10)),
            run: Box::new(move || unpack(architecture, &cache)),
        });
    }
}

/// QEMU's program that runs programs of another architecture.
fn emulator(architecture: Architecture) -> String {
    format!("qemu-{}", architecture.processor())
}

fn suites() -> Result<[Suite; 2]> {
    let file = "/etc/os-release";
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    Suite::of_this_machine(&text)
}

fn cache(architecture: Architecture) -> Result<Cache> {
    let sources = suites()?.map(|suite| suite.source()).concat();
    let made = fingerprint(&[&sources, include_str!("../../toolchain/src/debian.rs")]);
    Ok(Cache::new(&format!("image-system-{architecture}-{made}")))
}

fn unpack(architecture: Architecture, cache: &Cache) -> Result<()> {
    cache.fill(|folder, log| {
        let apt = folder.join("apt");
        let lists = Lists::fetch(&apt, architecture, &suites()?, log)?;
        lists.install(&["iptables"], &folder.join("root"), log)?;
        std::fs::remove_dir_all(&apt).context("cannot remove the packages' lists")
    })
}

impl System {
    /// The one of an architecture, which has been made if it is not this machine's.
    pub(super) fn get(architecture: Architecture) -> Result<Self> {
        let root = if architecture.is_native() {
            PathBuf::from("/")
        } else {
            let cache = cache(architecture)?;
            ensure!(
                cache.is_complete(),
                "the packages of {architecture} are not unpacked yet"
            );
            cache.path().join("root").canonicalize()?
        };
        Ok(Self { architecture, root })
    }

    /// A program of root's.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("usr/sbin").join(name);
        path.canonicalize()
            .with_context(|| format!("there is no {}", path.display()))
    }

    /// Path of a file in it, with the links of its folder resolved.
    pub(super) fn place(&self, file: &Path) -> Result<PathBuf> {
        let folder = file.parent().context("a file is in a folder")?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("there is no {}", file.display()))?;
        let place = folder.join(file.file_name().context("a file has a name")?);
        Ok(place.strip_prefix(&self.root)?.to_owned())
    }

    /// The file at a path of it.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the libraries of programs and libraries, the loader included, and theirs in turn.
    pub(super) fn libraries(&self, linked: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        let mut unread = linked.to_vec();
        while let Some(file) = unread.pop() {
            let mut read = Command::new("readelf");
            read.args(["--wide", "--dynamic", "--program-headers"]);
            let output = exec(read.arg(&file))?;
            for name in output.lines().filter_map(needed) {
                let library = self.library(name);
                let library = library.with_context(|| format!("for {}", file.display()))?;
                if found.insert(library.clone()) {
                    unread.push(library);
                }
            }
        }
        Ok(found)
    }

    /// The library of this name, or the loader at this path.
    fn library(&self, name: &str) -> Result<PathBuf> {
        let path = if name.starts_with('/') {
            self.file(name)
        } else {
            self.root
                .join("usr/lib")
                .join(self.architecture.multiarch())
                .join(name)
        };
        ensure!(path.is_file(), "there is no {}", path.display());
        Ok(path)
    }

    /// The packages that files belong to, with their versions.
    pub(super) fn packages(&self, files: &BTreeSet<PathBuf>) -> Result<BTreeMap<String, String>> {
        let mut names = BTreeSet::new();
        for file in files {
            names.insert(self.owner(file)?);
        }
        let mut packages = BTreeMap::new();
        for name in names {
            let version = self.version(&name)?;
            packages.insert(name, version);
        }
        Ok(packages)
    }

    /// The version of a package.
    pub(super) fn version(&self, package: &str) -> Result<String> {
        let version = self.query(&["--show", "--showformat=${Version}\n", package])?;
        let version = version.lines().next().context("a package has a version")?;
        Ok(version.to_owned())
    }

    /// dpkg knows a file by the path that its package names, below / or below /usr.
    fn owner(&self, file: &Path) -> Result<String> {
        let file = Path::new("/").join(file.strip_prefix(&self.root)?);
        let outside = Path::new("/").join(file.strip_prefix("/usr").unwrap_or(&file));
        let search = |file: &Path| self.query(&["--search", &file.display().to_string()]);
        let output = search(&file).or_else(|_| search(&outside))?;
        let name = output.split([':', ',']).next().unwrap_or_default();
        ensure!(!name.is_empty(), "{} is of no package", file.display());
        Ok(name.to_owned())
    }

    fn query(&self, arguments: &[&str]) -> Result<String> {
        let mut admindir = OsString::from("--admindir=");
        admindir.push(self.file("var/lib/dpkg"));
        exec(Command::new("dpkg-query").arg(admindir).args(arguments))
    }

    /// Runs a program with a root file system of this architecture: with that one and no other, if
    /// this machine can.
    pub(super) fn run_in(&self, root: &Path, program: &str, argument: &str) -> Result<String> {
        let mut command = if self.architecture.is_native() {
            let chroot = find_program("chroot").context("there is no chroot in PATH")?;
            let mut command = Command::new(chroot);
            command.arg(root).arg(program);
            command
        } else {
            let emulator = emulator(self.architecture);
            let emulator = find_program(&emulator)
                .with_context(|| format!("there is no {emulator} in PATH"))?;
            let mut command = Command::new(emulator);
            command
                .arg("-L")
                .arg(root)
                .arg(root.join(program.trim_start_matches('/')));
            command
        };
        exec(command.env_clear().arg(argument))
    }
}

/// Name in a line of readelf: a library, or the loader by its path.
fn needed(line: &str) -> Option<&str> {
    let (_, rest) = line
        .split_once("Shared library: [")
        .or_else(|| line.split_once("[Requesting program interpreter: "))?;
    rest.strip_suffix(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_readelf() {
        assert_eq!(
            needed(" 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]"),
            Some("libc.so.6")
        );
        assert_eq!(
            needed("      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(
            needed(" 0x000000000000000e (SONAME) Library soname: [x]"),
            None
        );
    }
}
