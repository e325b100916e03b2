//! Debian's kernels: found in its suites, fetched once, and made ready to boot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use toolchain::{Architecture, Cache, Log, Plan, Step, exec, fingerprint};

use super::{disk, initramfs};
use toolchain::debian::{Lists, SID, Suite, newest};

/// A kernel that `--kernel` selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its name, as `--kernel` takes it.
    pub name: &'static str,
    suites: &'static [Suite],
    /// Prefix of its packages' names, after `linux-image-`.
    prefix: &'static str,
    /// Part of its packages' names that distinguishes them from other suites' builds.
    mark: &'static str,
}

const BULLSEYE: &[Suite] = &[
    Suite::new("debian", "bullseye"),
    Suite::new("debian-security", "bullseye-security"),
];
const BOOKWORM: &[Suite] = &[
    Suite::new("debian", "bookworm"),
    Suite::new("debian-security", "bookworm-security"),
];
const BACKPORTS: &[Suite] = &[
    Suite::new("debian", "bookworm-backports"),
    Suite::new("debian-security", "bookworm-security"),
];

/// All kernels, oldest first.
pub const CHOICES: [Choice; 4] = [
    Choice {
        name: "5.10",
        suites: BULLSEYE,
        prefix: "5.10.0-",
        mark: "",
    },
    Choice {
        name: "6.1",
        suites: BOOKWORM,
        prefix: "6.1.0-",
        mark: "",
    },
    Choice {
        name: "6.12",
        suites: BACKPORTS,
        prefix: "6.12.",
        mark: "+deb12",
    },
    Choice {
        name: "newest",
        suites: &[SID],
        prefix: "",
        mark: "+deb",
    },
];

/// A kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in `--kernel`.
    pub name: &'static str,
    /// Its release, as printed by `uname -r`.
    pub release: String,
    /// Its architecture.
    pub architecture: Architecture,
    folder: PathBuf,
}

impl Choice {
    /// Returns the choice of this name.
    ///
    /// # Errors
    /// Fails when there is no such choice.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = CHOICES.into_iter().find(|choice| choice.name == name);
        found.ok_or_else(|| {
            let names = CHOICES.map(|choice| choice.name).join(", ");
            format!("there is no such kernel; there are {names}")
        })
    }

    fn cache(self, architecture: Architecture) -> Cache {
        let suites = self.suites.iter().map(Suite::source);
        let suites: String = suites.collect();
        let made = fingerprint(&[
            &suites,
            self.prefix,
            self.mark,
            include_str!("init.sh"),
            include_str!("initramfs.rs"),
        ]);
        Cache::new(&format!("node-kernel-{}-{architecture}-{made}", self.name))
    }

    /// Adds it, if it is missing.
    pub(super) fn plan(self, architecture: Architecture, plan: &mut Plan) {
        let cache = self.cache(architecture);
        if cache.is_complete() {
            return;
        }
        plan.step(Step {
            what: format!(
                "Debian's kernel {} ({architecture}), unpacked into {}",
                self.name,
                cache.path().display()
            ),
            why: "runs in nodes in virtual machines",
            about: Some(Duration::from_secs(30)),
            run: Box::new(move || cache.fill(|folder, log| self.fetch(architecture, folder, log))),
        });
    }

    /// Returns the kernel, which was fetched before.
    ///
    /// # Errors
    /// Fails when it was not fetched.
    pub fn kernel(self, architecture: Architecture) -> Result<Kernel> {
        let cache = self.cache(architecture);
        ensure!(
            cache.is_complete(),
            "the kernel {} is not fetched yet",
            self.name
        );
        let release = std::fs::read_to_string(cache.path().join("release"))?;
        Ok(Kernel {
            name: self.name,
            release,
            architecture,
            folder: cache.path().to_owned(),
        })
    }

    fn fetch(self, architecture: Architecture, folder: &Path, log: &Log) -> Result<()> {
        disk::check_room(folder, 400)?;
        let apt = folder.join("apt");
        // Backports have no busybox.
        let mut suites = self.suites.to_vec();
        if !suites.contains(&SID) {
            suites.push(BOOKWORM[0].clone());
        }
        let lists = Lists::fetch(&apt, architecture, &suites, log)?;
        let images = lists.names(&format!("linux-image-{}", self.prefix))?;
        let suffix = format!("-cloud-{architecture}");
        let images = images
            .iter()
            .filter(|name| name.ends_with(&suffix) && self.is_of(name));
        let image = newest(images).with_context(|| {
            format!(
                "Debian's suites have no kernel linux-image-{}*{}*{suffix} any more",
                self.prefix, self.mark
            )
        })?;
        let release = image.trim_start_matches("linux-image-");
        // Newer ones are in parts.
        let mut packages = vec![image.clone(), "busybox-static".into()];
        for part in ["linux-binary", "linux-modules"] {
            packages.extend(lists.names(&format!("{part}-{release}"))?);
        }
        let root = folder.join("unpacked");
        lists.unpack(&packages, &root, log)?;
        assemble(&root, release, folder)?;
        std::fs::remove_dir_all(&root)?;
        std::fs::remove_dir_all(&apt)?;
        std::fs::write(folder.join("release"), release)?;
        Ok(())
    }

    /// Returns whether a package is one of its kernels, and not a metapackage for the newest one.
    fn is_of(self, package: &str) -> bool {
        let release = package.trim_start_matches("linux-image-");
        release.starts_with(|first: char| first.is_ascii_digit())
            && release.starts_with(self.prefix)
            && release.contains(self.mark)
            && release
                .split('-')
                .next()
                .is_some_and(|version| version.split('.').count() > 2)
    }
}

/// Makes kernel, initial file system and modules' disk from the unpacked packages.
fn assemble(root: &Path, release: &str, folder: &Path) -> Result<()> {
    let modules = ["lib/modules", "usr/lib/modules"];
    let modules = modules.map(|path| root.join(path).join(release));
    let Some(modules) = modules.into_iter().find(|path| path.is_dir()) else {
        bail!("the packages of {release} have no modules");
    };
    let images = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let Some(image) = images.into_iter().find(|path| path.is_file()) else {
        bail!("the packages of {release} have no kernel");
    };
    std::fs::rename(image, folder.join("vmlinuz"))?;
    // As the root has it: one folder of modules for each release.
    let base = folder.join("modules");
    std::fs::create_dir_all(base.join("lib/modules"))?;
    let modules_there = base.join("lib/modules").join(release);
    std::fs::rename(modules, &modules_there)?;
    exec(Command::new("depmod").arg("-b").arg(&base).arg(release))?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path));
    let Some(busybox) = busybox.iter().find(|path| path.is_file()) else {
        bail!("the package busybox-static has no busybox");
    };
    initramfs::make(busybox, &modules_there, &folder.join("initramfs"))?;
    disk::make(
        &base.join("lib/modules"),
        &folder.join("modules.img"),
        0,
        false,
    )?;
    std::fs::remove_dir_all(&base)?;
    Ok(())
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("modules.img")
    }

    #[cfg(test)]
    pub(super) fn for_test(architecture: Architecture) -> Self {
        Self {
            name: "newest",
            release: "7.2".to_owned(),
            architecture,
            folder: PathBuf::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_distinguished_from_other_suites_and_metapackages() {
        let of = |name: &str, package| Choice::parse(name).unwrap().is_of(package);
        assert!(of("6.1", "linux-image-6.1.0-56-cloud-amd64"));
        assert!(!of("6.1", "linux-image-6.1-cloud-amd64"));
        assert!(of("6.12", "linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(!of("6.12", "linux-image-6.12-cloud-amd64"));
        assert!(of("newest", "linux-image-7.2.13+deb14-cloud-amd64"));
        assert!(!of("newest", "linux-image-cloud-amd64"));
    }

    #[test]
    fn an_unknown_kernel_is_refused_with_a_list_of_known_ones() {
        let error = Choice::parse("4.9").unwrap_err();
        assert!(error.contains("5.10, 6.1, 6.12, newest"), "{error}");
    }
}
