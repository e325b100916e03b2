//! `cgroup/getpeername4` and `getpeername6`: shows the application the address that it connected
//! to.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use kiam_ebpf::{MAPPED_PREFIX, METADATA_PORT, METADATA_V4, METADATA_V6};

use crate::state::{
    PROCEED, REDIRECTED_CONTAINER, REDIRECTED_V4, REDIRECTED_V6, SOCKETS, config, container_v4,
};

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &mut *ctx.sock_addr };
    if !is_agent(address.user_ip4, address.user_port) {
        return PROCEED;
    }
    address.user_ip4 = match disposition(&ctx) {
        REDIRECTED_V4 => METADATA_V4,
        REDIRECTED_CONTAINER => container_v4(),
        _ => return PROCEED,
    };
    address.user_port = METADATA_PORT as u32;
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &mut *ctx.sock_addr };
    if !is_agent(address.user_ip6[3], address.user_port) {
        return PROCEED;
    }
    match disposition(&ctx) {
        requested @ (REDIRECTED_V4 | REDIRECTED_CONTAINER) => {
            address.user_ip6[0] = MAPPED_PREFIX[0];
            address.user_ip6[1] = MAPPED_PREFIX[1];
            address.user_ip6[2] = MAPPED_PREFIX[2];
            address.user_ip6[3] = if requested == REDIRECTED_V4 {
                METADATA_V4
            } else {
                container_v4()
            };
            address.user_port = METADATA_PORT as u32;
        }
        REDIRECTED_V6 => {
            address.user_ip6[0] = METADATA_V6[0];
            address.user_ip6[1] = METADATA_V6[1];
            address.user_ip6[2] = METADATA_V6[2];
            address.user_ip6[3] = METADATA_V6[3];
            address.user_port = METADATA_PORT as u32;
        }
        _ => {}
    }
    PROCEED
}

#[inline(always)]
fn is_agent(address: u32, port: u32) -> bool {
    config().is_some_and(|config| address == config.host_v4 && port == config.port as u32)
}

/// Returns the disposition of the socket since its connect; zero if there is none.
#[inline(always)]
fn disposition(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the storage, if there is any, belongs to the socket of the context.
    unsafe {
        let stored = SOCKETS.get_ptr_mut(ctx);
        if stored.is_null() {
            0
        } else {
            (*stored).disposition
        }
    }
}
