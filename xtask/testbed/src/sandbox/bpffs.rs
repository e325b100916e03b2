//! A BPF file system that no mount table has: what is pinned in it goes with the file that holds
//! it, also when this process is killed.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The file system. It is removed with the last clone.
#[derive(Debug, Clone)]
pub struct Bpffs(Arc<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    _root: File,
}

impl Bpffs {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the kernel does not let this process mount.
    pub fn new() -> Result<Self> {
        // The mount is in the thread's namespace, which ends with it; the open file keeps the file
        // system alive.
        let root = std::thread::spawn(mounted)
            .join()
            .map_err(|_panic| anyhow!("the thread that mounts has panicked"))??;
        let path = format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd());
        Ok(Self(Arc::new(Held {
            path: path.into(),
            _root: root,
        })))
    }

    /// Path of the file system, for this process and its children.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

fn mounted() -> Result<File> {
    let at = Path::new("/sys");
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot make the mounts private")?;
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a BPF file system")?;
    File::open(at).context("cannot open the BPF file system")
}
