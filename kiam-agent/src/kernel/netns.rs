//! The network namespace of the agent, which is the node's.
#![expect(unsafe_code, reason = "nix has no SO_NETNS_COOKIE")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// Error when reading the cookie of the namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the cookie of this network namespace (SO_NETNS_COOKIE, since Linux 5.14): {0}"
)]
pub struct NetnsError(#[from] io::Error);

/// Returns the cookie that the programs identify the calling thread's network namespace by.
pub fn own_netns_cookie() -> Result<u64, NetnsError> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the pointers are to a u64 and to its length, as the option requires (net/core/sock.c,
    // sk_getsockopt), and outlive the call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error().into())
    }
}
