//! Closes what pods had open with the metadata service before the kernel programs were there.
//!
//! None of these connections' packets get out any more; a client that asks on one waits for its own
//! time limit. A socket is closed from within its network namespace only (sock_diag(7)), so each pod's is
//! entered, as container runtimes keep them in a folder: for that one needs `CAP_SYS_ADMIN`, which the
//! agent itself has not. So it is a command, to be run once where kiam comes to pods that are there.

mod message;

use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::sched::{CloneFlags, setns};

use message::{Connection, Said};

/// This process's own network namespace: the node's, whose daemons keep what they have.
const OWN: &str = "/proc/self/ns/net";

/// Why connections cannot be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OldConnectionsError {
    /// The folder cannot be read.
    #[error("cannot read {}: {source}; --network-namespaces names the folder in which the container runtime keeps pods' network namespaces", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace cannot be looked into.
    #[error("cannot look for connections in {}: {source}{}", namespace.display(), hint(source))]
    Namespace {
        /// Its file.
        namespace: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// Network namespaces that were looked into.
    pub namespaces: usize,
    /// Connections that were closed.
    pub connections: usize,
}

/// Closes the connections to the metadata service in all network namespaces of the folder, but for
/// this process's own.
///
/// # Errors
/// When the folder, or one of the namespaces, cannot be looked into. Those before it have been.
pub fn close(folder: &Path) -> Result<Closed, OldConnectionsError> {
    let unreadable = |source| OldConnectionsError::Folder {
        folder: folder.to_owned(),
        source,
    };
    let own = std::fs::metadata(OWN).map_err(unreadable)?;
    let mut closed = Closed::default();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let failed = |source| OldConnectionsError::Namespace {
            namespace: path.clone(),
            source,
        };
        let namespace = match File::open(&path) {
            Ok(namespace) => namespace,
            // Its pod has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let meta = namespace.metadata().map_err(failed)?;
        if (meta.st_dev(), meta.st_ino()) == (own.st_dev(), own.st_ino()) {
            continue;
        }
        closed.connections += within(namespace).map_err(failed)?;
        closed.namespaces += 1;
    }
    Ok(closed)
}

/// In a thread of its own, which ends in that namespace.
fn within(namespace: File) -> io::Result<usize> {
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        close_here()
    });
    let ended = thread.join();
    ended.unwrap_or_else(|_panic| Err(io::Error::other("the thread within it broke down")))
}

fn close_here() -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    // The kernel answers while it is asked: what is not there then never comes.
    socket.set_non_blocking(true)?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut found = Vec::new();
        exchange(&socket, &message::list(family), &mut found)?;
        for connection in found.iter().filter(|found| found.is_to_metadata_service()) {
            match exchange(&socket, &connection.destroy(), &mut Vec::new()) {
                Ok(()) => closed += 1,
                // It has just ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
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
