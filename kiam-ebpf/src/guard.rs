//! `cgroup_skb/egress`: drops packets to the metadata service, and attests connections to the
//! agent.
//!
//! Runs for every packet that a pod sends, so any other packet costs a few reads and comparisons.
//! It sees what the connect hooks do not: UDP, raw sockets, connections that were open before. An
//! attestation is recorded when the SYN leaves, before the agent can see the SYN.

use core::mem::offset_of;

use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use kiam_ebpf::{Hook, METADATA_V4, METADATA_V6, Verdict, egress};

use crate::attest::attest;
use crate::packet::{IPPROTO_TCP, Ipv4, Tcp, read, sender, socket};
use crate::state::{HOST_NETWORK, PROCEED, SOCKETS, Socket, config, refuse};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// RFC 8200: the destination's offset in the header.
const IPV6_DESTINATION: usize = 24;

#[cgroup_skb(egress)]
pub(crate) fn guard(ctx: SkBuffContext) -> i32 {
    // A program of this type sees packets from the network header on, and no packet is shorter.
    let Some(header) = read::<Ipv4>(&ctx, 0) else {
        return refuse(Hook::Egress, Verdict::PacketDropped, sender(&ctx));
    };
    if header.version_and_length >> 4 == 4 {
        guard_v4(&ctx, &header)
    } else {
        guard_v6(&ctx)
    }
}

#[inline(always)]
fn guard_v4(ctx: &SkBuffContext, header: &Ipv4) -> i32 {
    if header.destination == METADATA_V4 {
        return to_metadata(ctx);
    }
    // A header with options is longer, and sockets may set options. The length is in words.
    let length = (header.version_and_length & 0x0f) as usize * 4;
    if length != size_of::<Ipv4>() && routes_to_metadata(ctx, length) {
        return to_metadata(ctx);
    }
    if header.protocol != IPPROTO_TCP {
        return PROCEED;
    }
    let flags = if length == size_of::<Ipv4>() {
        read::<Tcp>(ctx, size_of::<Ipv4>()).map(|tcp| tcp.flags)
    } else {
        ctx.load::<u8>(length + offset_of!(Tcp, flags)).ok()
    };
    match flags {
        Some(flags) if flags & (SYN | ACK) == SYN => attest(ctx, header.destination, length),
        _ => PROCEED,
    }
}

#[inline(always)]
fn guard_v6(ctx: &SkBuffContext) -> i32 {
    let Some(destination) = read::<[u32; 4]>(ctx, IPV6_DESTINATION) else {
        return refuse(Hook::Egress, Verdict::PacketDropped, sender(ctx));
    };
    // The last word first: it differs in almost every packet.
    if destination[3] == METADATA_V6[3]
        && destination[0] == METADATA_V6[0]
        && destination[1] == METADATA_V6[1]
        && destination[2] == METADATA_V6[2]
    {
        return to_metadata(ctx);
    }
    PROCEED
}

/// Returns whether the options of the header name the metadata service: a source route leads over
/// the destination to an address in the options (RFC 791). An address may start at any byte.
/// Options that cannot be read count as such a route.
///
/// The words are unrolled: before Linux 6.17 the verifier rejects a loop here, since speculative
/// execution may leave it too late (see [`events`](crate::events)).
#[inline(never)]
fn routes_to_metadata(ctx: &SkBuffContext, length: usize) -> bool {
    let mut before = 0;
    macro_rules! look_at_words {
        ($($offset:literal)*) => {$(
            if length <= $offset {
                return false;
            }
            let Ok(word) = ctx.load::<u32>($offset) else {
                return true;
            };
            if ends_in(before, word) {
                return true;
            }
            before = word;
        )*};
    }
    look_at_words!(20 24 28 32 36 40 44 48 52);
    length > 56
        && match ctx.load::<u32>(56) {
            Ok(word) => ends_in(before, word),
            Err(_unreadable) => true,
        }
}

/// Returns whether the address of the metadata service ends in this word of the packet, and starts
/// in this word or in the one before.
#[inline(always)]
fn ends_in(before: u32, word: u32) -> bool {
    const METADATA: u32 = u32::from_be(METADATA_V4);
    let both = u64::from(u32::from_be(before)) << 32 | u64::from(u32::from_be(word));
    both as u32 == METADATA
        || (both >> 8) as u32 == METADATA
        || (both >> 16) as u32 == METADATA
        || (both >> 24) as u32 == METADATA
}

/// Lets a packet pass if it is from a socket of the node's network namespace that a connect hook
/// let through, or if the agent has opened egress for all.
#[inline(never)]
fn to_metadata(ctx: &SkBuffContext) -> i32 {
    if config().is_some_and(|config| config.egress == egress::OPEN) {
        return PROCEED;
    }
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Hook::Egress, Verdict::PacketDropped, sender(ctx));
    }
    // SAFETY: the socket was checked to be a full one; the storage, if there is any, belongs to it.
    let disposition = unsafe {
        let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
        let stored = bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Socket>();
        if stored.is_null() {
            0
        } else {
            (*stored).disposition
        }
    };
    if disposition == HOST_NETWORK {
        PROCEED
    } else {
        refuse(Hook::Egress, Verdict::PacketDropped, sender(ctx))
    }
}
