//! Removes sandboxes: in order, after a crash, and after a crash of the remover.
//!
//! A sandbox's cgroup, namespaces and scratch folder carry `PID-NUMBER` in their names. One small
//! shell script removes them; it runs as a process of its own, outside of the reach of Ctrl-C, and
//! begins when its input ends, which the kernel sees to even if the owner is killed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use super::cgroup;

const SCRIPT: &str = include_str!("janitor.sh");
const PREFIX: &str = "kiam-test-";
const NETNS_PREFIX: &str = "kiam-";
const NETNS_FOLDER: &str = "/run/netns";

/// The process that removes one sandbox.
#[derive(Debug)]
pub(super) struct Janitor(Child);

/// A sandbox's cgroup.
pub(super) fn cgroup(run: &str) -> Result<PathBuf> {
    Ok(cgroup::mount()?.join(format!("{PREFIX}{run}")))
}

/// A sandbox's scratch folder.
pub(super) fn scratch(run: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{run}"))
}

impl Janitor {
    /// Watches over a sandbox that is about to be made.
    pub(super) fn watch(run: &str) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "janitor"])
            .arg(cgroup(run)?)
            .arg(format!("{NETNS_PREFIX}{run}-"))
            .arg(scratch(run))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's janitor")?;
        Ok(Self(child))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It has no other work than to end; a failed wait leaves it to init.
        let _ = self.0.wait();
    }
}

/// Removes the sandboxes of processes that are gone, and of an earlier one with this one's id.
pub(super) fn sweep() {
    let mut runs = BTreeSet::new();
    if let Ok(mount) = cgroup::mount() {
        runs.extend(names(&mount).filter_map(|name| run_of(&name, PREFIX)));
    }
    runs.extend(names(&std::env::temp_dir()).filter_map(|name| run_of(&name, PREFIX)));
    runs.extend(names(Path::new(NETNS_FOLDER)).filter_map(|name| run_of(&name, NETNS_PREFIX)));
    for run in runs.iter().filter(|run| is_abandoned(run)) {
        drop(Janitor::watch(run));
    }
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| OsStr::to_str(&entry.file_name()).map(str::to_owned))
}

/// `PID-NUMBER` of a name that begins with `prefix` and them.
fn run_of(name: &str, prefix: &str) -> Option<String> {
    let mut parts = name.strip_prefix(prefix)?.splitn(3, '-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let number: u32 = parts.next()?.parse().ok()?;
    Some(format!("{pid}-{number}"))
}

fn is_abandoned(run: &str) -> bool {
    let pid = run.split('-').next().unwrap_or_default();
    pid == std::process::id().to_string() || !Path::new("/proc").join(pid).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sandboxes_are_told_from_others() {
        let run = Some("123-4".to_owned());
        assert_eq!(run_of("kiam-test-123-4", PREFIX), run);
        assert_eq!(run_of("kiam-123-4-control", NETNS_PREFIX), run);
        for name in [
            "kiam-test-",
            "kiam-test-x-1",
            "kiam-test-1",
            "other",
            "kiam-test-123-x",
        ] {
            assert_eq!(run_of(name, PREFIX), None, "{name}");
        }
        assert_eq!(run_of("kiam-prod-1-a", NETNS_PREFIX), None);
    }

    #[test]
    fn a_sandbox_is_abandoned_when_its_process_is_gone() {
        assert!(!is_abandoned("1-0"));
        assert!(is_abandoned("4194305-0"), "above the kernel's largest pid");
        assert!(is_abandoned(&format!("{}-0", std::process::id())));
    }
}
