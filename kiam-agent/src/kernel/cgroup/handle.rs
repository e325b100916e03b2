//! Path of a cgroup by its id, in O(1): the id is the kernfs file handle of the cgroup.
#![expect(unsafe_code, reason = "nix has no open_by_handle_at")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// `FILEID_KERNFS` (include/linux/exportfs.h, since Linux 5.5): the handle is the id of the node.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// Error when looking up the path of a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The mount cannot be opened.
    #[error("cannot open the cgroup file system {}: {source}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The cgroup cannot be opened by its id.
    #[error(
        "cannot open the cgroup with the id {id}: {source}; the agent needs the capability DAC_READ_SEARCH, and Linux 5.5 or newer"
    )]
    Open {
        /// The id.
        id: u64,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The path cannot be read.
    #[error("cannot read the path of the cgroup with the id {id}: {source}")]
    Path {
        /// The id.
        id: u64,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// An opened cgroup file system.
#[derive(Debug)]
pub(crate) struct Handles(File);

/// `struct file_handle` with the eight bytes of a kernfs id (open_by_handle_at(2)).
#[repr(C)]
struct KernfsHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

impl Handles {
    /// Opens the cgroup file system mounted at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, HandleError> {
        let opened = File::open(path);
        opened.map(Self).map_err(|source| HandleError::Mount {
            path: path.to_owned(),
            source,
        })
    }

    /// Returns the path of a cgroup; `None` if no cgroup has this id any more.
    pub(crate) fn path(&self, id: u64) -> Result<Option<PathBuf>, HandleError> {
        let mut handle = KernfsHandle {
            bytes: 8,
            kind: FILEID_KERNFS,
            id: id.to_ne_bytes(),
        };
        // SAFETY: the handle is laid out as the call reads it, with as many bytes after its header
        // as `bytes` says, and outlives the call, which only reads it.
        let opened = unsafe {
            libc::open_by_handle_at(
                self.0.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if opened < 0 {
            let source = io::Error::last_os_error();
            return match source.raw_os_error() {
                Some(libc::ESTALE | libc::ENOENT) => Ok(None),
                _ => Err(HandleError::Open { id, source }),
            };
        }
        // SAFETY: the call has just returned the descriptor, and it has no other owner.
        let opened = unsafe { OwnedFd::from_raw_fd(opened) };
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let path = std::fs::read_link(link).map_err(|source| HandleError::Path { id, source })?;
        // The kernel marks a removed cgroup that is still open elsewhere.
        Ok((!path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")).then_some(path))
    }
}
