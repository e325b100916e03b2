//! Mapping from cgroups to pods.
//!
//! ```text
//! mount    where cgroup2 is mounted, and the cgroup of all pods
//! handle   the path of a cgroup, by its id, in one system call
//! path     the pod, by the levels of the path that the kubelet creates
//! ```

mod handle;
mod mount;
mod path;

use std::path::{Path, PathBuf};

pub(crate) use handle::{HandleError, Handles};
pub use mount::Mount;
pub(crate) use mount::MountError;
pub(crate) use path::pod_of;

use crate::caller::PodRef;

/// Lookup of pods by cgroup id.
#[derive(Debug)]
pub struct Pods {
    handles: Handles,
    pods: PathBuf,
}

/// Result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The cgroup of a pod.
    Pod(PodRef),
    /// No cgroup has this id any more.
    Gone,
    /// A cgroup outside of any pod, with its path for the log.
    Other(PathBuf),
}

impl Pods {
    /// Creates a lookup for the pods below the cgroup `pods` on `mount`.
    pub fn new(mount: &Mount, pods: &Path) -> Result<Self, HandleError> {
        Ok(Self {
            handles: Handles::open(mount.path())?,
            pods: mount::resolve(pods),
        })
    }

    /// Returns whether the programs on the pods' cgroup run for sockets of this cgroup.
    pub fn contain(&self, cgroup: u64) -> Result<bool, HandleError> {
        let path = self.handles.path(cgroup)?;
        Ok(path.is_some_and(|path| path.starts_with(&self.pods)))
    }

    /// Returns the pod of a cgroup.
    pub fn find(&self, cgroup: u64) -> Result<Found, HandleError> {
        let Some(path) = self.handles.path(cgroup)? else {
            return Ok(Found::Gone);
        };
        let below = path.strip_prefix(&self.pods).ok();
        Ok(match below.and_then(pod_of) {
            Some(pod) => Found::Pod(pod),
            None => Found::Other(path),
        })
    }
}
