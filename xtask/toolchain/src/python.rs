//! Python programs, each set in a virtual environment of its own in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::exec;
use crate::workspace;
use crate::{Cache, Package, Plan, Step, find_programs, fingerprint};

/// The AWS CLI and boto3.
pub const AWS: Python = Python {
    what: "the AWS CLI and boto3",
    why: "runs unmodified clients in the sandbox's pods",
    file: "aws.txt",
    requirements: include_str!("../python/aws.txt"),
    import: "boto3",
};
/// moto's server.
pub const MOTO: Python = Python {
    what: "moto",
    why: "stands in for AWS STS",
    file: "moto.txt",
    requirements: include_str!("../python/moto.txt"),
    import: "boto3",
};
/// zizmor.
pub const ZIZMOR: Python = Python {
    what: "zizmor",
    why: "reads the workflows of .github",
    file: "zizmor.txt",
    requirements: include_str!("../python/zizmor.txt"),
    import: "sys",
};

/// Succeeds with a Python that is new enough and can make virtual environments.
const USABLE: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";

/// A set of Python packages, all pinned.
#[derive(Debug, Clone, Copy)]
pub struct Python {
    what: &'static str,
    why: &'static str,
    file: &'static str,
    requirements: &'static str,
    /// Module that can be imported where it works.
    import: &'static str,
}

impl Python {
    /// The set that `requirements` pins, which is what `file` in xtask/toolchain/python holds.
    pub const fn new(
        what: &'static str,
        why: &'static str,
        file: &'static str,
        requirements: &'static str,
        import: &'static str,
    ) -> Self {
        Self {
            what,
            why,
            file,
            requirements,
            import,
        }
    }

    /// A program of it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.cache().path().join("bin").join(name)
    }

    /// Returns whether it is installed.
    pub fn is_installed(&self) -> bool {
        self.cache().is_complete()
    }

    fn cache(&self) -> Cache {
        Cache::new(&format!("python-{}", fingerprint(&[self.requirements])))
    }

    /// An environment ends with the Python that it was made by: by a new release of the system,
    /// say.
    fn works(self) -> bool {
        let mut command = Command::new(self.program("python"));
        command.args(["-c", &format!("import {}", self.import)]);
        exec(&mut command).is_ok()
    }

    /// Adds missing parts to the plan.
    pub fn plan(self, plan: &mut Plan) -> Result<()> {
        if self.is_installed() {
            if self.works() {
                return Ok(());
            }
            self.cache().spoil()?;
        }
        if find_python().is_none() {
            let why = "Python's virtual environments";
            plan.package(Package {
                name: "python3-venv",
                why,
            });
        }
        let path = self.cache().path().display().to_string();
        plan.step(Step {
            what: format!("{}, by pip into {path}", self.what),
            why: self.why,
            about: Some(Duration::from_secs(30)),
            run: Box::new(move || self.install()),
        });
        Ok(())
    }

    fn install(self) -> Result<()> {
        let Some(python) = find_python() else {
            bail!("no python3 in PATH is 3.10 or newer and can make virtual environments");
        };
        let requirements = workspace().join("xtask/toolchain/python").join(self.file);
        self.cache().fill(|folder, log| {
            log.exec(Command::new(python).args(["-m", "venv"]).arg(folder))?;
            let mut pip = Command::new(folder.join("bin/python"));
            pip.args(["-m", "pip", "install", "--no-input", "--no-cache-dir"])
                .args(["--disable-pip-version-check", "--no-deps", "--requirement"])
                .arg(requirements);
            log.exec(&mut pip)
        })
    }
}

fn find_python() -> Option<PathBuf> {
    let usable = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-c", USABLE]);
        exec(&mut command).is_ok()
    };
    find_programs("python3")
        .into_iter()
        .find(|python| usable(python))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_pinned() {
        for set in [AWS, MOTO, ZIZMOR] {
            let lines = set
                .requirements
                .lines()
                .filter(|line| !line.starts_with('#'));
            let loose: Vec<_> = lines.filter(|line| !line.contains("==")).collect();
            assert!(loose.is_empty(), "{}: {loose:?}", set.file);
        }
        assert_ne!(AWS.cache(), MOTO.cache());
    }
}
