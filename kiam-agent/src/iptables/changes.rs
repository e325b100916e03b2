//! The kernel's word that somebody has changed rules of nftables. Rules of the older kind change
//! silently.
#![expect(unsafe_code, reason = "tokio waits for a netlink socket only so")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`, as a bit.
const NFTABLES: u32 = 1 << 6;

/// Wakes when rules change, where the kernel tells.
#[derive(Debug)]
pub(super) struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Changes from now on, in this network namespace.
    pub(super) fn watch() -> Self {
        let socket = open().inspect_err(|error| {
            tracing::debug!(%error, "the kernel does not tell of changed firewall rules");
        });
        Self(socket.ok())
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) {
        if let Some(socket) = &self.0 {
            match read(socket).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot hear any more of changed firewall rules");
                    self.0 = None;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES))?;
    // SAFETY: the socket is open, nothing else has its descriptor, and the AsyncFd, which owns it
    // from here on, closes it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Waits for messages, and reads all there are: that there are some is all there is to know.
async fn read(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    let mut message = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            // Too many changes at once is a change as well.
            Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}
