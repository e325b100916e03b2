//! A program of crates.io, built once into the user's cache.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Cache, Plan, Step, cargo};

/// A program of crates.io.
#[derive(Debug, Clone, Copy)]
pub struct CargoTool {
    /// Name of its package and program.
    pub name: &'static str,
    /// Version that is built.
    pub version: &'static str,
    /// Purpose, shown before it is installed.
    pub why: &'static str,
    /// Time to build it on a small machine.
    pub seconds: u64,
    /// More for `cargo install`.
    pub flags: &'static [&'static str],
}

impl CargoTool {
    /// Adds it, if it is missing.
    pub fn plan(self, plan: &mut Plan) {
        let cache = self.cache();
        if cache.is_complete() {
            return;
        }
        let Self { name, version, .. } = self;
        plan.step(Step {
            what: format!(
                "{name} {version}, built by cargo into {}",
                cache.path().display()
            ),
            why: self.why,
            about: Some(Duration::from_secs(self.seconds)),
            run: Box::new(move || {
                cache.fill(|folder, log| {
                    let mut install = cargo();
                    install
                        .args(["install", name, "--locked", "--version", version])
                        .args(self.flags)
                        .arg("--root")
                        .arg(folder)
                        // Its build is its own: this workspace's settings are not for it.
                        .env_remove("CARGO_TARGET_DIR")
                        .current_dir("/");
                    log.exec(&mut install)
                })
            }),
        });
    }

    /// Path of the installed program.
    pub fn path(self) -> Result<PathBuf> {
        let cache = self.cache();
        ensure!(cache.is_complete(), "{} is not built yet", self.name);
        Ok(cache.path().join("bin").join(self.name))
    }

    fn cache(self) -> Cache {
        Cache::new(&format!("{}-{}", self.name, self.version))
    }
}
