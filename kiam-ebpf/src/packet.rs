//! Packets as a `cgroup_skb` program sees them, from the network header on, and their senders.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;

use crate::events::About;

pub(crate) const IPPROTO_TCP: u8 = 6;

/// IPv4 header (RFC 791), without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    pub(crate) version_and_length: u8,
    pub(crate) service: u8,
    pub(crate) total_length: u16,
    pub(crate) id: u16,
    pub(crate) flags_and_offset: u16,
    pub(crate) life: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: u16,
    pub(crate) source: u32,
    pub(crate) destination: u32,
}

/// The beginning of a TCP header (RFC 9293).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: u16,
}

/// Returns the socket that sends the packet, if it is a full socket; else null.
#[inline(always)]
pub(crate) fn socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: the context is valid while the program runs; the helper checks the socket.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            sk
        } else {
            bpf_sk_fullsock(sk)
        }
    }
}

/// Returns the sender of the packet, as the subject of an event.
#[inline(always)]
pub(crate) fn sender(ctx: &SkBuffContext) -> About {
    About::Sender(ctx.skb.skb)
}

/// Reads from the packet directly, without a helper.
#[inline(always)]
pub(crate) fn read<T: Copy>(ctx: &SkBuffContext, offset: usize) -> Option<T> {
    // SAFETY: the verifier sees the bounds check right here. Header fields are aligned, or the
    // machine does not require it (NET_IP_ALIGN, include/linux/skbuff.h).
    unsafe {
        let start = (*ctx.skb.skb).data as usize;
        let end = (*ctx.skb.skb).data_end as usize;
        if start + offset + size_of::<T>() > end {
            return None;
        }
        Some(core::ptr::read((start + offset) as *const T))
    }
}
