//! Disk that machines get: kiam's programs, these commands and the kernel tests, built here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use toolchain::{cargo, exec, find_program};

use super::{Check, disk};
use crate::patched::Patch;
use testbed::kiam::{self, Programs, last_executable};

/// Content of the disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Payload<'a> {
    /// An agent that was built elsewhere.
    Agent(&'a Path),
    /// Programs that these checks need, of this commit.
    For(&'a [Check]),
}

impl Payload<'_> {
    /// Builds the programs, and makes the disk in a folder.
    pub(super) fn disk(self, folder: &Path) -> Result<PathBuf> {
        let staging = folder.join("programs");
        std::fs::create_dir_all(&staging)?;
        match self {
            // As it is: it may be of a processor that this machine's strip does not know.
            Self::Agent(agent) => copy(agent, &staging.join("kiam-agent"))?,
            Self::For(checks) => built(&staging, checks)?,
        }
        let image = folder.join("programs.img");
        disk::make(&staging, &image, 0, false)?;
        std::fs::remove_dir_all(&staging)?;
        Ok(image)
    }
}

fn built(staging: &Path, checks: &[Check]) -> Result<()> {
    let programs = if checks.contains(&Check::Restarts) {
        let programs = Patch::NextLayout.build_beside()?;
        let next = programs.patched(Patch::NextLayout.name())?;
        let patched = next.agent().strip_prefix(programs.folder());
        let patched = staging.join(patched.context("the patched agent is elsewhere")?);
        if let Some(parent) = patched.parent() {
            std::fs::create_dir_all(parent)?;
        }
        put(next.agent(), &patched)?;
        programs
    } else {
        Programs::build()?
    };
    let xtask = std::env::current_exe().context("cannot find this program")?;
    put(programs.agent(), &staging.join("kiam-agent"))?;
    put(programs.server(), &staging.join("kiam-server"))?;
    put(kiam::pod_client()?, &staging.join("pod-client"))?;
    put(&xtask, &staging.join("xtask"))?;
    if checks.contains(&Check::Tests) {
        put(&kernel_tests()?, &staging.join("kernel-tests"))?;
    }
    Ok(())
}

/// The program of the kernel tests.
fn kernel_tests() -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["test", "--no-run", "--quiet", "--locked"])
        .args(["--message-format=json-render-diagnostics"])
        .args(["-p", "kiam-agent", "--test", "kernel"]);
    let messages = exec(&mut command)?;
    let found = last_executable(&messages, |message| message["target"]["name"] == "kernel");
    found.context("cargo built no kernel tests")
}

/// Copies a program without its debug information, which is most of it.
fn put(from: &Path, to: &Path) -> Result<()> {
    if find_program("strip").is_some() {
        let mut command = Command::new("strip");
        command.arg("--strip-debug").arg("-o").args([to, from]);
        return exec(&mut command).map(drop);
    }
    copy(from, to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {}", from.display()))
}
