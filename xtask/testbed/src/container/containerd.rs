//! A containerd of the sandbox's own: Debian's, with runc, in a cgroup and a mount namespace that end
//! with it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use toolchain::exec;

use crate::sandbox::{Place, Program, Sandbox, cgroup_mount};

/// containerd and runc know no cgroup2 that is mounted beside version 1: they are shown cgroup2
/// alone. The first argument is where that is. The sockets of containers' shims have a fixed place,
/// which is not the machine's.
const ALONE: &str = r#"mount --rbind "$0" /sys/fs/cgroup && mkdir -p /run/containerd &&
    mount -t tmpfs tmpfs /run/containerd && exec "$@""#;
/// Folder of containerd, its shims and runc in Debian.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// It says so when it serves.
const BOOTED: &str = "containerd successfully booted";
const LIMIT: Duration = Duration::from_secs(20);

/// It runs. It is killed when dropped, with all containers' shims.
#[derive(Debug)]
pub(super) struct Containerd {
    program: Program,
    folder: PathBuf,
    /// The nodes that have a BPF file system there, by what stands for it.
    bpffs: Mutex<HashMap<PathBuf, PathBuf>>,
    // Killed when the last of these goes.
    _place: Place,
}

impl Containerd {
    /// Starts it, and gives it an image.
    pub(super) fn start(sandbox: &Sandbox, archive: &Path) -> Result<Self> {
        let folder = sandbox.folder("containerd")?;
        let config = folder.join("config.toml");
        std::fs::write(&config, configuration(&folder))?;
        let cgroup = sandbox.cgroup().child("containerd")?;
        let place = sandbox.control().with_cgroup(cgroup);
        let mut command = place.command("/usr/bin/unshare");
        command
            .env_clear()
            .env("PATH", PATH)
            // Network namespaces that are made later are seen there as well.
            .args([
                "--mount",
                "--propagation=slave",
                "--",
                "/bin/sh",
                "-c",
                ALONE,
            ])
            .arg(cgroup_mount()?)
            .args(["containerd", "--config"])
            .arg(config);
        let containerd = Self {
            program: Program::start("containerd", command)?,
            folder,
            bpffs: Mutex::default(),
            _place: place,
        };
        let booted = |line: &str| line.contains(BOOTED).then_some(());
        containerd.program.wait_for("its start", LIMIT, booted)?;
        exec(containerd.ctr(&["images", "import"]).arg(archive))?;
        let names = exec(&mut containerd.ctr(&["images", "list", "--quiet"]))?;
        let name = names.lines().next().context("containerd has no image")?;
        let root = containerd.root();
        std::fs::create_dir(&root)?;
        exec(containerd.ctr(&["images", "mount", "--rw", name]).arg(root))
            .context("cannot mount the image")?;
        Ok(containerd)
    }

    /// The image's files, in containerd's mount namespace: runc makes there what it mounts on.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// A node's BPF file system in containerd's mount namespace, with which it ends.
    pub(super) fn bpffs(&self, node: &Path) -> Result<PathBuf> {
        let mut made = self.bpffs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = made.get(node) {
            return Ok(folder.clone());
        }
        let folder = self.folder.join(format!("bpffs-{}", made.len()));
        std::fs::create_dir(&folder)?;
        let mut mount = self.within("mount");
        mount.args(["-t", "bpf", "-o", "mode=0700", "bpf"]);
        exec(mount.arg(&folder)).context("cannot mount a BPF file system")?;
        made.insert(node.to_owned(), folder.clone());
        Ok(folder)
    }

    /// A command that runs a container by its configuration.
    pub(super) fn run(&self, name: &str, config: &Value) -> Result<Command> {
        let file = self.folder.join(format!("{name}.json"));
        std::fs::write(&file, config.to_string())?;
        let mut command = self.ctr(&["run", "--rm", "--fifo-dir"]);
        command
            .arg(&self.folder)
            .arg("--config")
            .arg(file)
            .arg(name);
        Ok(command)
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut command = self.within("ctr");
        command
            .arg("--address")
            .arg(socket(&self.folder))
            .args(words);
        command
    }

    /// A command in containerd's mount namespace.
    fn within(&self, program: &str) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .env_clear()
            .env("PATH", PATH)
            .arg(format!("--mount=/proc/{}/ns/mnt", self.program.pid()))
            .args(["--", program]);
        command
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// Nothing of it is where a containerd of the machine's would be, and it needs no more than images
/// and containers.
fn configuration(folder: &Path) -> String {
    let (root, state, socket) = (folder.join("root"), folder.join("state"), socket(folder));
    format!(
        r#"version = 2
root = "{}"
state = "{}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{}"
"#,
        root.display(),
        state.display(),
        socket.display()
    )
}
