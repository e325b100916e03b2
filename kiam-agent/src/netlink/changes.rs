//! Notifications of the kernel about changes by other programs.

use std::future::poll_fn;
use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, TokioSocket};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES: u32 = 7;
/// `RTNLGRP_IPV4_RULE` and `RTNLGRP_IPV6_RULE` of `linux/rtnetlink.h`.
const RULES: [u32; 2] = [8, 19];

/// Subject of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Rules of nftables. The kernel sends nothing about legacy rules.
    Firewall,
    /// Rules of policy routing. Routes change with every pod, and are not included.
    RoutingRules,
}

/// Notifications, if the kernel supports them.
pub(crate) struct Changes(Option<TokioSocket>);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Changes").field(&self.0.is_some()).finish()
    }
}

impl Changes {
    /// Subscribes to changes from now on, in this network namespace.
    pub(crate) fn watch(subject: Subject) -> Self {
        let socket = open(subject).inspect_err(|error| {
            tracing::debug!(%error, news = ?subject, "the kernel does not report changes");
        });
        Self(socket.ok())
    }

    /// Waits for a change; forever, if the kernel does not report changes.
    pub(crate) async fn next(&mut self) {
        if let Some(socket) = &mut self.0 {
            match read(socket).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot read notifications of changes");
                    self.0 = None;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

fn open(subject: Subject) -> io::Result<TokioSocket> {
    let (protocol, groups) = match subject {
        Subject::Firewall => (NETLINK_NETFILTER, &[NFTABLES][..]),
        Subject::RoutingRules => (NETLINK_ROUTE, &RULES[..]),
    };
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    for group in groups {
        socket.socket_ref().add_membership(*group)?;
    }
    Ok(socket)
}

/// Waits for messages and reads all there are; their contents do not matter.
async fn read(socket: &mut TokioSocket) -> io::Result<()> {
    let mut next = poll_fn(|context| socket.poll_recv(context, &mut message())).await;
    loop {
        match next {
            Ok(_) => {}
            // An overflow means changes as well.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        next = socket.socket_ref().recv(&mut message(), 0).map(drop);
    }
}

fn message() -> Vec<u8> {
    Vec::with_capacity(4096)
}
