//! Closes what pods had open with the metadata service before the kernel programs were there.
//!
//! None of these connections' packets get out any more; a client that asks on one waits for its own
//! time limit. A socket is closed from within its network namespace only (sock_diag(7)), so each pod's is
//! entered, as container runtimes keep them in a folder. For that one needs `CAP_SYS_ADMIN`, which the
//! agent itself has not: it is done before, by a process that ends.

mod message;

use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::sched::{CloneFlags, setns};

use crate::kernel::cgroup::{HandleError, Pods};
use crate::netlink;
use message::{Connection, Said};

/// This process's own network namespace: the node's, whose daemons and pods keep what they have.
const OWN: &str = "/proc/self/ns/net";

/// Why connections cannot be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OldConnectionsError {
    /// This process's own network namespace is not told.
    #[error("cannot read {OWN}, the network namespace not to be looked into: {0}")]
    Own(#[source] io::Error),
    /// The folder cannot be read.
    #[error("cannot read {}: {source}; --network-namespaces names the folder in which the container runtime keeps pods' network namespaces", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Which connections are pods' is not told.
    #[error(transparent)]
    Cgroup(#[from] HandleError),
    /// A namespace cannot be looked into.
    #[error("cannot close connections in {}: {source}{}", namespace.display(), hint(source))]
    Namespace {
        /// Its file.
        namespace: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OldConnectionsError {
    /// Whether the other namespaces' would be as this one's.
    fn is_of_all(&self) -> bool {
        match self {
            Self::Own(_) | Self::Folder { .. } | Self::Cgroup(_) => true,
            Self::Namespace { source, .. } => source.raw_os_error() == Some(libc::EPERM),
        }
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "; this needs the capabilities SYS_ADMIN and NET_ADMIN",
        Some(libc::EOPNOTSUPP) => "; the kernel needs CONFIG_INET_DIAG_DESTROY",
        Some(libc::EINVAL) => "; it is no network namespace",
        _ => "",
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Closed {
    /// Network namespaces that were looked into.
    pub namespaces: usize,
    /// Connections that were closed.
    pub connections: usize,
    /// What could not be looked into: of one pod, or of none that lives.
    pub passed_over: Vec<OldConnectionsError>,
}

/// Closes the connections of pods to the metadata service in all network namespaces of the folder,
/// but for this process's own.
///
/// # Errors
/// When none can be closed at all, for want of the folder or of a capability.
pub fn close(folder: &Path, pods: &Pods) -> Result<Closed, OldConnectionsError> {
    let unreadable = |source| OldConnectionsError::Folder {
        folder: folder.to_owned(),
        source,
    };
    let own = std::fs::metadata(OWN).map_err(OldConnectionsError::Own)?;
    let own = (own.st_dev(), own.st_ino());
    let mut closed = Closed::default();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match close_in(&path, own, pods) {
            Ok(None) => {}
            Ok(Some(connections)) => {
                closed.namespaces += 1;
                closed.connections += connections;
            }
            Err(error) if error.is_of_all() => return Err(error),
            Err(error) => closed.passed_over.push(error),
        }
    }
    Ok(closed)
}

/// `None` where there is nothing to look into.
fn close_in(
    path: &Path,
    own: (u64, u64),
    pods: &Pods,
) -> Result<Option<usize>, OldConnectionsError> {
    let failed = |source| OldConnectionsError::Namespace {
        namespace: path.to_owned(),
        source,
    };
    let namespace = match File::open(path) {
        Ok(namespace) => namespace,
        // Its pod has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let meta = namespace.metadata().map_err(failed)?;
    if (meta.st_dev(), meta.st_ino()) == own {
        return Ok(None);
    }
    // In a thread of its own, which ends in that namespace.
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
            close_here(pods, failed)
        });
        thread.join()
    });
    let broken = |_panic| Err(failed(io::Error::other("the thread within it broke down")));
    ended.unwrap_or_else(broken).map(Some)
}

fn close_here(
    pods: &Pods,
    failed: impl Fn(io::Error) -> OldConnectionsError,
) -> Result<usize, OldConnectionsError> {
    let socket = netlink::open(NETLINK_SOCK_DIAG).map_err(&failed)?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut found = Vec::new();
        exchange(&socket, &message::list(family), &mut found).map_err(&failed)?;
        for connection in found.iter().filter(|found| found.is_to_metadata_service()) {
            // What the guard does not drop goes on.
            let of_pod = connection.cgroup().map(|cgroup| pods.contain(cgroup));
            if of_pod.transpose()? != Some(true) {
                continue;
            }
            match exchange(&socket, &connection.destroy(), &mut Vec::new()) {
                Ok(()) => closed += 1,
                // It has just ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(closed)
}

fn exchange(socket: &Socket, request: &[u8], found: &mut Vec<Connection>) -> io::Result<()> {
    socket.send(request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for said in message::read(&datagram) {
            match said {
                Said::Found(connection) => found.push(connection),
                Said::Other => {}
                Said::End(0) => return Ok(()),
                Said::End(code) => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
}
