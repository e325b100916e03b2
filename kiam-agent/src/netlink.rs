//! The kernel's netlink sockets: requests about routing, and news of changes.

mod changes;
pub(crate) mod messages;
mod request;

use std::path::Path;

pub(crate) use changes::{Changes, News};
pub(crate) use messages::{HEADER_BYTES, messages};
pub(crate) use request::Routing;

/// Whether this network namespace has IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}
