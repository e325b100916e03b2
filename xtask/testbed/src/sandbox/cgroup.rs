//! Cgroups of the version 2 hierarchy, wherever it is mounted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// A cgroup that this process has made. It is removed, with the processes in it, when the last
/// clone is dropped.
#[derive(Debug, Clone)]
pub struct Cgroup(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    path: PathBuf,
    // Keeps what it is in until it is gone itself.
    _parent: Option<Cgroup>,
}

/// Mount point of cgroup2.
///
/// # Errors
/// When it is not.
pub fn mount() -> Result<PathBuf> {
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    parse_mount(&mounts).context("cgroup2 is not mounted")
}

/// The mount point: the fifth field; the file system's type follows a lone `-`. See `proc(5)`.
fn parse_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let kind = system.split(' ').next()?;
        let point = mount.split(' ').nth(4)?;
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// Says why cgroups cannot be made, if they cannot.
pub(super) fn missing() -> Option<String> {
    let probe = format!("kiam-test-probe-{}", std::process::id());
    let made = mount().and_then(|mount| Cgroup::make(&mount.join(probe)));
    made.err()
        .map(|error| format!("a cgroup2 hierarchy that can be written to ({error:#})"))
}

impl Cgroup {
    /// Makes a cgroup at this path.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub(super) fn make(path: &Path) -> Result<Self> {
        Self::make_in(path, None)
    }

    fn make_in(path: &Path, parent: Option<Self>) -> Result<Self> {
        std::fs::create_dir(path)
            .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self(Arc::new(Owned {
            path: path.to_owned(),
            _parent: parent,
        })))
    }

    /// Makes a cgroup in this one.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make_in(&self.path().join(name), Some(self.clone()))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The id by which the kernel names it: its folder's inode.
    ///
    /// # Errors
    /// When it is gone.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(self.path()).context("cannot look at a cgroup")?;
        Ok(metadata.ino())
    }

    /// Kills all processes in it and below, without waiting for their end.
    ///
    /// # Errors
    /// When the kernel does not do so.
    pub fn kill(&self) -> Result<()> {
        let kill = self.path().join("cgroup.kill");
        std::fs::write(&kill, "1").with_context(|| format!("cannot write {}", kill.display()))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let remove = || std::fs::remove_dir(&self.path);
        let is_busy = |result: &io::Result<()>| {
            let kind = result.as_ref().err().map(io::Error::kind);
            kind == Some(io::ErrorKind::ResourceBusy)
        };
        if is_busy(&remove()) {
            // Already gone if this fails.
            let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        }
        // What was killed takes a moment to die; the janitor removes what takes longer.
        for _ in 0..REMOVE_TRIES {
            if !is_busy(&remove()) {
                break;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_unified_and_hybrid_layouts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let found = parse_mount(hybrid);
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(parse_mount("1 2 0:3 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
