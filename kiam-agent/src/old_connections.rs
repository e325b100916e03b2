//! Closes pods' connections to the metadata service that are older than the kernel programs.
//!
//! The programs drop the packets of these connections, so a client would wait for its timeout. A
//! socket can be closed only from within its network namespace (sock_diag(7)), so each namespace in
//! the container runtime's directory is entered. That needs `CAP_SYS_ADMIN`, which the agent does
//! not have: a short-lived process does it before the agent starts.

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
use message::{Connection, Reply};

/// The network namespace of this process, which is the node's. Its connections are left open.
const OWN: &str = "/proc/self/ns/net";

/// Error when closing connections.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OldConnectionsError {
    #[error("cannot read {OWN}, the network namespace to leave out: {0}")]
    Own(#[source] io::Error),
    #[error("cannot read {}: {source}; set --network-namespaces to the directory in which the container runtime keeps pods' network namespaces", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] HandleError),
    #[error("cannot close connections in {}: {source}{}", namespace.display(), hint(source))]
    Namespace {
        namespace: PathBuf,
        source: io::Error,
    },
}

impl OldConnectionsError {
    /// Returns whether the error would be the same for all other namespaces.
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
        Some(libc::EINVAL) => "; not a network namespace",
        _ => "",
    }
}

/// Result of closing connections.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    /// Number of network namespaces that were searched.
    pub(crate) namespaces: usize,
    /// Number of connections that were closed.
    pub(crate) connections: usize,
    /// Errors of single namespaces, which were skipped.
    pub(crate) skipped: Vec<OldConnectionsError>,
}

/// Closes the connections of pods to the metadata service in all network namespaces of the
/// directory, except that of this process. Fails if no namespace can be searched: without the
/// directory or a capability.
pub(crate) fn close(folder: &Path, pods: &Pods) -> Result<Closed, OldConnectionsError> {
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
            Err(error) => closed.skipped.push(error),
        }
    }
    Ok(closed)
}

/// Closes connections in one namespace; `None` if it is gone, or that of this process.
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
        // The pod is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let meta = namespace.metadata().map_err(failed)?;
    if (meta.st_dev(), meta.st_ino()) == own {
        return Ok(None);
    }
    // In a separate thread, which stays in that namespace until it ends.
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
            close_here(pods, failed)
        });
        thread.join()
    });
    let broken = |_panic| Err(failed(io::Error::other("the thread in it panicked")));
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
            // Connections outside of the pods' cgroup pass the guard, and stay open.
            let of_pod = connection.cgroup().map(|cgroup| pods.contain(cgroup));
            if of_pod.transpose()? != Some(true) {
                continue;
            }
            match exchange(&socket, &connection.destroy(), &mut Vec::new()) {
                Ok(()) => closed += 1,
                // The connection has just ended.
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
        for replies in message::read(&datagram) {
            match replies {
                Reply::Found(connection) => found.push(connection),
                Reply::Other => {}
                Reply::End(0) => return Ok(()),
                Reply::End(code) => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
}
