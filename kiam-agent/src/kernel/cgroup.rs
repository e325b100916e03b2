//! Which pod a cgroup is of.
//!
//! ```text
//! mount    where the machine's cgroup2 is, and the cgroup of all pods in it
//! handle   a cgroup's path, by its id, in one system call
//! path     the pod, by the path: only the levels that the kubelet made count
//! ```

mod handle;
mod mount;
mod path;

use std::path::{Path, PathBuf};

pub use handle::{HandleError, Handles};
pub use mount::{Mount, MountError};
pub use path::pod_of;

use crate::caller::PodRef;

/// Tells the pod of a cgroup id.
#[derive(Debug)]
pub struct Pods {
    handles: Handles,
    pods: PathBuf,
}

/// What a cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A pod's.
    Pod(PodRef),
    /// There is none of that id any more.
    Gone,
    /// No pod's. Its path, for a log.
    Other(PathBuf),
}

impl Pods {
    /// Tells the pods below the cgroup `pods`, on `mount`.
    ///
    /// # Errors
    /// When the mount cannot be opened.
    pub fn new(mount: &Mount, pods: &Path) -> Result<Self, HandleError> {
        Ok(Self {
            handles: Handles::open(mount.path())?,
            pods: mount::resolve(pods),
        })
    }

    /// Whether the programs on the pods' cgroup run for a socket of the cgroup with this id.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn contain(&self, cgroup: u64) -> Result<bool, HandleError> {
        let path = self.handles.path(cgroup)?;
        Ok(path.is_some_and(|path| path.starts_with(&self.pods)))
    }

    /// The pod of the cgroup with this id.
    ///
    /// # Errors
    /// When the kernel does not tell.
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
