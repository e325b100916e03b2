//! The kernel's netlink sockets: requests about routing, and news of changes.

mod changes;
pub(crate) mod messages;
mod request;

use std::io;
use std::path::Path;

use netlink_sys::Socket;

pub(crate) use changes::{Changes, News};
pub(crate) use messages::{HEADER_BYTES, NESTED, messages, value};
pub(crate) use request::Routing;

/// Whether this network namespace has IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// A socket to ask the kernel by, of this thread's network namespace.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // The kernel answers while the request is sent: what is not there then never comes.
    socket.set_non_blocking(true)?;
    Ok(socket)
}
