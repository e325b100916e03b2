//! Containers of the image: started by crun, with the user, capabilities, system calls and
//! read-only root that a pod's manifest gives them.
//!
//! The cgroup is the one that the process joins before: the sandbox makes those, not the runtime.

mod seccomp;

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sandbox::{Place, cgroup_mount};
use crate::setup::find_program;

/// Where containers see cgroup2.
const CGROUPS: &str = "/sys/fs/cgroup";
/// crun knows no cgroup2 that is mounted beside version 1: it is shown cgroup2 alone. The first
/// argument is where that is.
const ALONE: &str = r#"mount --rbind "$0" /sys/fs/cgroup && exec "$@""#;

/// A path in cgroup2 as containers see it.
///
/// # Errors
/// When cgroup2 is not mounted.
pub fn cgroup_inside(path: &Path) -> Result<PathBuf> {
    let below = path.strip_prefix(cgroup_mount()?);
    Ok(below.map_or_else(
        |_elsewhere| path.to_owned(),
        |below| Path::new(CGROUPS).join(below),
    ))
}

/// An image, to run containers of.
#[derive(Debug, Clone)]
pub struct Containers {
    root: PathBuf,
    bundles: Arc<Bundles>,
}

#[derive(Debug, Default)]
struct Bundles {
    made: AtomicU32,
    // Made with the first container, removed with the last clone.
    folder: OnceLock<TempDir>,
}

/// What runs in a container, and what it may do and see.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// Its user and group.
    pub user: u32,
    /// Its capabilities, with `CAP_`.
    pub capabilities: Vec<String>,
    /// What it sees beside the image.
    pub mounts: Vec<Mount>,
}

/// Something that a container sees.
#[derive(Debug, Clone)]
pub enum Mount {
    /// A file or folder of this machine's, to read.
    Bind {
        /// Here.
        source: PathBuf,
        /// There.
        destination: PathBuf,
    },
    /// A BPF file system of its own. The sandbox's are in no mount table, so that they cannot be
    /// bound; that programs outlive an agent is shown where it runs in no container.
    Bpf(PathBuf),
}

impl Containers {
    /// Of the image with this root file system.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            bundles: Arc::default(),
        }
    }

    /// A command that runs a container in a place.
    ///
    /// # Errors
    /// When there is no crun, or its files cannot be written.
    pub fn command(&self, place: &Place, spec: &Spec) -> Result<Command> {
        let folder = match self.bundles.folder.get() {
            Some(folder) => folder,
            None => {
                let made = tempfile::tempdir()?;
                self.bundles.folder.get_or_init(|| made)
            }
        };
        let number = self.bundles.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("kiam-{}-{number}", std::process::id());
        let bundle = folder.path().join(&name);
        std::fs::create_dir(&bundle)?;
        let config = self.config(spec)?;
        std::fs::write(bundle.join("config.json"), config.to_string())?;
        let crun = find_program("crun").context("there is no crun in PATH")?;
        let mut run = place.command("/usr/bin/unshare");
        run.env_clear()
            .args(["--mount", "--", "/bin/sh", "-c", ALONE])
            .arg(cgroup_mount()?)
            .arg(crun)
            .args(["--cgroup-manager=disabled", "--root"])
            .arg(folder.path().join("state"))
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(name);
        Ok(run)
    }

    /// See the runtime specification's config.md.
    fn config(&self, spec: &Spec) -> Result<Value> {
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "mode=755", "size=64k"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"] }),
        ];
        // Only so that what is mounted below has a place: the root is read-only.
        for place in ["/tmp", "/run"] {
            mounts.push(
                json!({ "destination": place, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "nodev", "mode=755", "size=64k"] }),
            );
        }
        mounts.extend(spec.mounts.iter().map(|mount| match mount {
            Mount::Bind {
                source,
                destination,
            } => json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["rbind", "ro", "nosuid", "noexec", "nodev"] }),
            Mount::Bpf(destination) => json!({ "destination": destination, "type": "bpf",
                "source": "bpf", "options": ["nosuid", "noexec", "nodev", "mode=0700"] }),
        }));
        let namespaces = ["mount", "ipc", "uts", "pid", "cgroup"];
        let namespaces: Vec<_> = namespaces.map(|kind| json!({ "type": kind })).into();
        let capabilities = &spec.capabilities;
        Ok(json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.root, "readonly": true },
            "process": {
                "cwd": "/",
                "user": { "uid": spec.user, "gid": spec.user },
                "args": spec.args,
                "env": spec.env,
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": capabilities,
                    "effective": capabilities,
                    "permitted": capabilities,
                },
            },
            "mounts": mounts,
            "linux": { "namespaces": namespaces, "seccomp": seccomp::profile(capabilities)? },
        }))
    }
}

/// Gives a folder and what is in it to a user, as the kubelet does for a pod's `fsGroup`.
///
/// # Errors
/// When it cannot be given.
pub fn give(folder: &Path, user: u32) -> Result<()> {
    chown(folder, Some(user), Some(user))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            give(&path, user)?;
        } else {
            std::os::unix::fs::lchown(&path, Some(user), Some(user))?;
        }
    }
    Ok(())
}
