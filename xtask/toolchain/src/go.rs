//! A Go that is new enough to build the control plane.
//!
//! A distribution's older one fetches a newer toolchain as a module, as `go` does by itself since
//! 1.21.

mod tool;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Architecture;
use crate::exec;
use crate::{Cache, Log, Package, Plan, Step, find_program};

pub use tool::GoTool;

/// Least version, as required by `xtask/testbed/cluster/go.mod`, and the version that is fetched.
const LEAST: (u32, u32) = (1, 26);
const TOOLCHAIN: &str = "1.26.8";

/// A Go that can build the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go(PathBuf);

impl Go {
    /// Command line of this Go alone, regardless of the environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command
            .env("GOTOOLCHAIN", "local")
            .env_remove("GOROOT")
            .env_remove("GOFLAGS");
        command
    }

    /// Builds the package of `sources`, as its `go.sum` pins it, without C.
    pub fn build(&self, sources: &Path, program: &Path, log: &Log) -> Result<()> {
        let mut command = self.command();
        command
            .current_dir(sources)
            .env("CGO_ENABLED", "0")
            .args(["build", "-mod=readonly", "-trimpath", "-o"])
            .arg(program)
            .arg(".");
        log.exec(&mut command)
    }
}

/// Adds missing parts to the plan.
pub fn plan(plan: &mut Plan) {
    if find().is_some() {
        return;
    }
    let why = "builds etcd, kube-apiserver and helm";
    if find_program("go").is_none() {
        plan.package(Package {
            name: "golang-go",
            why,
        });
    }
    let cache = cache();
    plan.step(Step {
        what: format!(
            "Go {TOOLCHAIN}, by an older Go into {}",
            cache.path().display()
        ),
        why,
        about: Some(Duration::from_secs(60)),
        run: Box::new(move || {
            // The one that the system's package brought may do.
            if find().is_some() {
                Ok(())
            } else {
                fetch(&cache)
            }
        }),
    });
}

/// The Go in `PATH`, else the fetched one.
pub fn find() -> Option<Go> {
    let fetched = cache();
    let fetched = fetched.is_complete().then(|| fetched.path().join("bin/go"));
    [find_program("go"), fetched]
        .into_iter()
        .flatten()
        .find(|go| is_new(go))
        .map(Go)
}

fn is_new(go: &Path) -> bool {
    let output = exec(Go(go.to_owned()).command().arg("version"));
    output
        .ok()
        .and_then(|output| version(&output))
        .is_some_and(|version| version >= LEAST)
}

/// Parses the output of `go version`, as in `go version go1.26.8 linux/amd64`.
fn version(output: &str) -> Option<(u32, u32)> {
    let mut parts = output
        .split_whitespace()
        .nth(2)?
        .strip_prefix("go")?
        .split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts
        .next()?
        .trim_end_matches(|c: char| !c.is_ascii_digit());
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Some((major, digits.parse().ok()?))
}

fn cache() -> Cache {
    Cache::new(&format!("go-{TOOLCHAIN}"))
}

fn fetch(cache: &Cache) -> Result<()> {
    let arch = Architecture::native()?;
    let old = find_program("go").context("the package contains no go")?;
    cache.fill(|folder, log| {
        let module = format!("golang.org/toolchain@v0.0.1-go{TOOLCHAIN}.linux-{arch}");
        let modules = folder.join("modules");
        let mut download = Go(old).command();
        download
            .current_dir(folder)
            .env("GOPATH", &modules)
            .env("GOMODCACHE", modules.join("mod"))
            .args(["mod", "download", &module]);
        log.exec(&mut download)
            .with_context(|| format!("install Go {TOOLCHAIN} or newer by hand"))?;
        // A module is read-only, and holds no executables and no modules: a newer go makes it a
        // toolchain again when it switches to it, this old one does not.
        let script = r#"chmod -R u+w "$0" && mv "$0/mod/$1"/* . && rm -r "$0" \
            && chmod -R u+x bin pkg/tool \
            && find . -name _go.mod -execdir mv -- {} go.mod ';'"#;
        let mut unpack = Command::new("sh");
        unpack
            .current_dir(folder)
            .args(["-c", script])
            .arg(&modules)
            .arg(module);
        log.exec(&mut unpack)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.27rc1 linux/amd64"), Some((1, 27)));
        assert_eq!(version("go version go1.19.8 linux/amd64"), Some((1, 19)));
        assert_eq!(version("something else"), None);
        assert!((1, 19) < LEAST && (1, 26) >= LEAST && (2, 0) > LEAST);
    }
}
