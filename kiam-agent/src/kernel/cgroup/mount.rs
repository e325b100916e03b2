//! Where the machine's cgroup2 is mounted, and the cgroup of all pods in it.

use std::path::{Path, PathBuf};

/// The names that the kubelet gives the cgroup of all pods: with the systemd driver, and with the
/// cgroupfs driver (Kubernetes documentation, "Container runtimes", cgroup drivers).
const PODS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// Why the pods' cgroup was not found.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Read(#[source] std::io::Error),
    /// There is none.
    #[error(
        "no cgroup2 file system is mounted here; mount the node's into the agent (hostPath /sys/fs/cgroup), or boot the node with cgroup2 (systemd.unified_cgroup_hierarchy=1)"
    )]
    None,
    /// There are no pods.
    #[error(
        "there is neither {} nor {} in the cgroup2 at {}; if the kubelet runs with --cgroup-root, give --pods-cgroup", PODS[0], PODS[1], mount.display()
    )]
    NoPods {
        /// Where it was looked for.
        mount: PathBuf,
    },
    /// The cgroup that was given is in another place.
    #[error("--pods-cgroup {} is not in a cgroup2 file system that is mounted here", path.display())]
    Elsewhere {
        /// The cgroup.
        path: PathBuf,
    },
}

/// A mounted cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount(PathBuf);

impl Mount {
    /// Finds the machine's: unified or, beside version 1, hybrid. In a container there may be
    /// another, the container's own: the one that has the pods' cgroup is preferred.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Self, MountError> {
        let mut mounts = Self::all()?;
        let with_pods = mounts.iter().position(|mount| mount.pods().is_ok());
        if mounts.is_empty() {
            Err(MountError::None)
        } else {
            Ok(mounts.swap_remove(with_pods.unwrap_or_default()))
        }
    }

    /// Finds the one that `cgroup` is in.
    ///
    /// # Errors
    /// When it is in none.
    pub fn of(cgroup: &Path) -> Result<Self, MountError> {
        let cgroup = &resolve(cgroup);
        let mounts = Self::all()?;
        let found = mounts
            .into_iter()
            .filter(|mount| cgroup.starts_with(&mount.0));
        found
            .max_by_key(|mount| mount.0.as_os_str().len())
            .ok_or_else(|| MountError::Elsewhere {
                path: cgroup.to_owned(),
            })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The cgroup of all pods in it.
    ///
    /// # Errors
    /// When there is none.
    pub fn pods(&self) -> Result<PathBuf, MountError> {
        let found = PODS
            .iter()
            .map(|name| self.0.join(name))
            .find(|path| path.is_dir());
        found.ok_or_else(|| MountError::NoPods {
            mount: self.0.clone(),
        })
    }

    fn all() -> Result<Vec<Self>, MountError> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(MountError::Read)?;
        Ok(table.lines().filter_map(cgroup2).map(Self).collect())
    }
}

/// The path without symbolic links, as the kernel tells paths. One that is not there stays as it is,
/// for whoever opens it to say so.
pub(super) fn resolve(cgroup: &Path) -> PathBuf {
    cgroup.canonicalize().unwrap_or_else(|_| cgroup.to_owned())
}

/// The mount point in a line of `/proc/self/mountinfo`, if it is of the root of a cgroup2
/// (proc_pid_mountinfo(5)).
fn cgroup2(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // Roots are shown as seen from the reader's cgroup namespace, so that the whole tree, mounted
    // into a container, has one like `/../..`. Any other is a part of the tree, bound elsewhere:
    // ids are not looked up by it.
    let mut above = root.split('/').skip(1);
    (root == "/" || above.all(|level| level == "..")).then(|| unescape(point).into())
}

/// Spaces, tabs, line ends and backslashes are octal there.
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(field.to_owned(), |field, (octal, character)| {
        field.replace(octal, character)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_among_the_mounts() {
        for (line, found) in [
            (
                "35 25 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw",
                Some("/sys/fs/cgroup"),
            ),
            (
                "36 25 0:31 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup rw",
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "37 25 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
                None,
            ),
            ("38 25 0:30 /kubepods /mnt rw - cgroup2 cgroup2 rw", None),
            ("38 25 0:30 /../kubepods /mnt rw - cgroup2 cgroup2 rw", None),
            (
                "38 25 0:30 /../../.. /host/cgroup ro - cgroup2 cgroup2 rw",
                Some("/host/cgroup"),
            ),
            (
                "39 25 0:30 / /a\\040b rw - cgroup2 cgroup2 rw",
                Some("/a b"),
            ),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(cgroup2(line), found.map(PathBuf::from), "{line}");
        }
    }
}
