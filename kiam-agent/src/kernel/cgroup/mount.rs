//! Mount points of cgroup2, and the cgroup of all pods.

use std::path::{Path, PathBuf};

/// Names of the cgroup of all pods: with the systemd driver and with the cgroupfs driver of the
/// kubelet (Kubernetes documentation, "Container runtimes", cgroup drivers).
const PODS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// Error when looking for the cgroup of all pods.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Read(#[source] std::io::Error),
    /// No cgroup2 is mounted.
    #[error(
        "no cgroup2 file system is mounted here; mount the node's into the agent (hostPath /sys/fs/cgroup), or boot the node with cgroup2 (systemd.unified_cgroup_hierarchy=1)"
    )]
    None,
    /// The cgroup of all pods is missing.
    #[error(
        "neither {} nor {} exists in the cgroup2 at {}; if the kubelet runs with --cgroup-root, set --pods-cgroup", PODS[0], PODS[1], mount.display()
    )]
    NoPods {
        /// The mount point that was searched.
        mount: PathBuf,
    },
    /// The given cgroup is not on a mounted cgroup2.
    #[error("--pods-cgroup {} is not in a cgroup2 file system that is mounted here", path.display())]
    Elsewhere {
        /// The given cgroup.
        path: PathBuf,
    },
}

/// A mounted cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount(PathBuf);

impl Mount {
    /// Finds the cgroup2 of the machine, in unified or hybrid mode. In a container there may be a
    /// second one of the container: the one with the pods' cgroup is preferred.
    pub fn find() -> Result<Self, MountError> {
        let mut mounts = Self::all()?;
        let with_pods = mounts.iter().position(|mount| mount.pods().is_ok());
        if mounts.is_empty() {
            Err(MountError::None)
        } else {
            Ok(mounts.swap_remove(with_pods.unwrap_or_default()))
        }
    }

    /// Finds the mount that contains `cgroup`.
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

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the cgroup of all pods.
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

/// Resolves symbolic links, since the kernel reports paths without them. A path that does not exist
/// is returned unchanged, so that opening it reports the error.
pub(super) fn resolve(cgroup: &Path) -> PathBuf {
    cgroup.canonicalize().unwrap_or_else(|_| cgroup.to_owned())
}

/// Returns the mount point in a line of `/proc/self/mountinfo` if it is the root of a cgroup2
/// (proc_pid_mountinfo(5)).
fn cgroup2(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // Roots are relative to the reader's cgroup namespace: the whole tree, mounted into a
    // container, has a root like `/../..`. Any other root is a bind mount of a subtree, by which
    // ids cannot be looked up.
    let mut above = root.split('/').skip(1);
    (root == "/" || above.all(|level| level == "..")).then(|| unescape(point).into())
}

/// Replaces the octal escapes of spaces, tabs, newlines and backslashes.
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
