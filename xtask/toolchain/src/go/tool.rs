//! A program of Go, built once from its module into the user's cache.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::go;
use crate::{Cache, Plan, Step};

/// A program of Go.
#[derive(Debug, Clone, Copy)]
pub struct GoTool {
    /// Name of its program.
    pub name: &'static str,
    /// Import path for `go install`.
    pub package: &'static str,
    /// Version that is built.
    pub version: &'static str,
    /// Purpose, shown before it is installed.
    pub why: &'static str,
    /// Time to build it on a small machine.
    pub seconds: u64,
}

impl GoTool {
    /// Adds missing parts to the plan.
    pub fn plan(self, plan: &mut Plan) {
        let cache = self.cache();
        if cache.is_complete() {
            return;
        }
        go::plan(plan);
        let Self { name, version, .. } = self;
        plan.step(Step {
            what: format!(
                "{name} {version}, built by Go into {}",
                cache.path().display()
            ),
            why: self.why,
            about: Some(Duration::from_secs(self.seconds)),
            run: Box::new(move || self.build()),
        });
    }

    /// Path of the installed program.
    pub fn path(self) -> Result<PathBuf> {
        let cache = self.cache();
        ensure!(cache.is_complete(), "{} is not built yet", self.name);
        Ok(cache.path().join("bin").join(self.name))
    }

    /// To run it.
    pub fn command(self) -> Result<Command> {
        self.path().map(Command::new)
    }

    fn cache(self) -> Cache {
        Cache::new(&format!("{}-{}", self.name, self.version))
    }

    fn build(self) -> Result<()> {
        let go = go::find().context("there is no Go that is new enough")?;
        self.cache().fill(|folder, log| {
            let mut command = go.command();
            command
                .current_dir(folder)
                .env("CGO_ENABLED", "0")
                .env("GOBIN", folder.join("bin"))
                .args(["install", "-trimpath", "-ldflags=-s -w"])
                .arg(format!("{}@v{}", self.package, self.version));
            log.exec(&mut command)
        })
    }
}
