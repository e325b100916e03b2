//! Containers of the image: run by containerd and runc, with the user, capabilities, system calls
//! and read-only root that a pod's manifest gives them, in a cgroup below their pod's.

mod containerd;
mod seccomp;

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};
use toolchain::{Package, Plan};

use crate::image::Image;
use crate::sandbox::{Place, Sandbox, cgroup_mount};
use containerd::Containerd;

/// Adds what runs them.
pub fn plan(plan: &mut Plan) {
    plan.program("containerd", "containerd", "runs containers of the image");
    plan.program("runc", "runc", "makes them, for containerd");
    if !Path::new(seccomp::PROFILE).is_file() {
        plan.package(Package {
            name: "golang-github-containers-common",
            why: "what containers may ask of the kernel",
        });
    }
}

/// Mount point of cgroup2 in containers.
const CGROUPS: &str = "/sys/fs/cgroup";

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

/// An image that containerd has, to run containers of.
#[derive(Debug, Clone)]
pub struct Containers {
    containerd: Arc<Containerd>,
    made: Arc<AtomicU32>,
}

/// The command of a container, its privileges and its mounts.
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
    /// Mounts beside the image.
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
    /// A node's BPF file system, which its containers have in common. The sandbox's own are in no mount
    /// table, so that they cannot be bound: this stands for the one that is here.
    Bpf {
        /// The node's, here.
        node: PathBuf,
        /// There.
        destination: PathBuf,
    },
}

impl Containers {
    /// Of this image, by a containerd of the sandbox's own.
    ///
    /// # Errors
    /// When there is no containerd, or it does not take the image.
    pub fn start(sandbox: &Sandbox, image: &Image) -> Result<Self> {
        Ok(Self {
            containerd: Arc::new(Containerd::start(sandbox, &image.archive)?),
            made: Arc::default(),
        })
    }

    /// A command that runs a container in a place: signals to it are the container's, and so is how
    /// it ends. The container has a cgroup below the place's.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn command(&self, place: &Place, spec: &Spec) -> Result<Command> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("kiam-{}-{number}", std::process::id());
        let config = self.config(place, &name, spec)?;
        self.containerd.run(&name, &config)
    }

    /// See the runtime specification's config.md.
    fn config(&self, place: &Place, name: &str, spec: &Spec) -> Result<Value> {
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
        for mount in &spec.mounts {
            let (source, destination, access) = match mount {
                Mount::Bind {
                    source,
                    destination,
                } => (source.clone(), destination, "ro"),
                Mount::Bpf { node, destination } => {
                    (self.containerd.bpffs(node)?, destination, "rw")
                }
            };
            mounts.push(
                json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["rbind", access, "nosuid", "noexec", "nodev"] }),
            );
        }
        let namespaces = ["mount", "ipc", "uts", "pid", "cgroup"];
        let mut namespaces: Vec<_> = namespaces.map(|kind| json!({ "type": kind })).into();
        namespaces.push(json!({ "type": "network", "path": place.netns().path() }));
        let cgroup = place.cgroup().path().strip_prefix(cgroup_mount()?)?;
        let cgroup = Path::new("/").join(cgroup).join(name);
        let capabilities = &spec.capabilities;
        Ok(json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.containerd.root(), "readonly": true },
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
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": namespaces,
                "seccomp": seccomp::profile(capabilities)?,
            },
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
