//! kiam's programs in containers of the image: started by crun, with the user, capabilities,
//! system calls and read-only root that the chart gives them.
//!
//! The cgroup is the one that the process joins before: with the sandbox's pods in cgroups of its
//! own, the runtime has none to make.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::seccomp;
use crate::sandbox::Place;
use crate::setup::find_program;

/// Whom the chart runs servers as.
const SERVER_USER: u32 = 65532;
/// What the chart gives agents with `redirect: ebpf`.
const AGENT_CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"];
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the chart mounts the BPF file system.
const BPFFS: &str = "/run/kiam/bpf";

/// What a program may do and see, as the chart has it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rights<'a> {
    /// No capability, an ordinary user, and these folders.
    Server(&'a [&'a Path]),
    /// Root with what kernel programs need, the cgroups, and these folders.
    Agent(&'a [&'a Path]),
}

/// An image, to run containers of.
#[derive(Debug, Clone)]
pub(super) struct Container {
    root: PathBuf,
    bundles: Arc<Bundles>,
}

#[derive(Debug)]
struct Bundles {
    made: AtomicU32,
    // Made with the first container, removed with the last clone.
    folder: std::sync::OnceLock<TempDir>,
}

impl Container {
    pub(super) fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            bundles: Arc::new(Bundles {
                made: AtomicU32::new(0),
                folder: std::sync::OnceLock::new(),
            }),
        }
    }

    /// A command that runs this one in a container in a place.
    pub(super) fn command(
        &self,
        place: &Place,
        command: &Command,
        rights: Rights<'_>,
    ) -> Result<Command> {
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
        let config = self.config(command, rights)?;
        std::fs::write(bundle.join("config.json"), config.to_string())?;
        let crun = find_program("crun").context("there is no crun in PATH")?;
        let mut run = place.command(crun);
        run.env_clear()
            .args(["--cgroup-manager=disabled", "--root"])
            .arg(folder.path().join("state"))
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(name);
        Ok(run)
    }

    /// See the runtime specification's config.md.
    fn config(&self, command: &Command, rights: Rights<'_>) -> Result<Value> {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let mut args = vec![text(command.get_program())];
        args.extend(command.get_args().map(text));
        let env: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some(format!("{}={}", text(name), text(value?))))
            .collect();
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "mode=755", "size=64k"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"] }),
            // Only so that what is mounted below has a place: the root is read-only.
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "noexec", "nodev", "mode=755", "size=64k"] }),
        ];
        let bind = |path: &Path, how: &str| {
            json!({ "destination": path, "type": "bind",
            "source": path, "options": ["rbind", how, "nosuid", "noexec", "nodev"] })
        };
        let (user, capabilities): (u32, &[&str]) = match rights {
            Rights::Server(folders) => {
                for folder in folders {
                    // As the kubelet does for a pod's `fsGroup`.
                    give(folder, SERVER_USER)?;
                    mounts.push(bind(folder, "ro"));
                }
                (SERVER_USER, &[])
            }
            Rights::Agent(folders) => {
                for folder in folders {
                    mounts.push(bind(folder, "ro"));
                }
                mounts.push(bind(Path::new(CGROUPS), "ro"));
                // One of its own: the sandbox's is in no mount table, so that it cannot be bound. That
                // programs outlive an agent is shown elsewhere.
                mounts.push(
                    json!({ "destination": BPFFS, "type": "bpf", "source": "bpf",
                    "options": ["nosuid", "noexec", "nodev", "mode=0700"] }),
                );
                let at = |argument: &String| argument.starts_with("--bpffs=");
                if let Some(argument) = args.iter_mut().find(|argument| at(argument)) {
                    *argument = format!("--bpffs={BPFFS}");
                }
                (0, &AGENT_CAPABILITIES)
            }
        };
        let namespaces = ["mount", "ipc", "uts", "pid", "cgroup"];
        let namespaces: Vec<_> = namespaces.map(|kind| json!({ "type": kind })).into();
        Ok(json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.root, "readonly": true },
            "process": {
                "cwd": "/",
                "user": { "uid": user, "gid": user },
                "args": args,
                "env": env,
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

/// Gives a folder and what is in it to a user.
fn give(folder: &Path, user: u32) -> Result<()> {
    chown(folder, Some(user), Some(user))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            give(&path, user)?;
        } else {
            chown(&path, Some(user), Some(user))?;
        }
    }
    Ok(())
}
