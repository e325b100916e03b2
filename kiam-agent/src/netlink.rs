//! Netlink sockets: requests about routing, and notifications of changes.

mod changes;
pub(crate) mod messages;
mod request;

use std::io;
use std::path::Path;

use netlink_sys::Socket;

pub(crate) use changes::{Changes, Subject};
pub(crate) use messages::{HEADER_BYTES, NESTED, messages, value};
pub(crate) use request::Routing;

/// Returns whether this network namespace has IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// Opens a socket for requests in the network namespace of the calling thread.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // The kernel answers during the request: an answer that is not there then never comes.
    socket.set_non_blocking(true)?;
    Ok(socket)
}
