//! `cgroup_skb/egress`: lets no packet out to the metadata service, and notes who calls the agent.
//!
//! Runs for every packet that a pod sends, so a packet that is none of its business costs a few
//! reads and comparisons. It sees what connect hooks do not: UDP, raw sockets, connections that
//! were open before. The note is taken when the SYN leaves, before the agent can see it.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_cgroup_id,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use kiam_ebpf::{ATTESTATION_LIFE_NANOS, Attestation, Caller, METADATA_V4, METADATA_V6, Verdict};

use crate::state::{ATTESTATIONS, HOST_NETWORK, PROCEED, SOCKETS, Socket, config, count, refuse};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u8 = 6;
const TCP_SYN_SENT: u32 = 2;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// RFC 791, without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_and_length: u8,
    service: u8,
    total_length: u16,
    id: u16,
    flags_and_offset: u16,
    life: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// RFC 9293, as far as it matters.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    offset: u8,
    flags: u8,
    window: u16,
}

/// RFC 8200: the destination's offset in the header.
const IPV6_DESTINATION: usize = 24;

#[cgroup_skb(egress)]
pub(crate) fn guard(ctx: SkBuffContext) -> i32 {
    // The program sees packets from the network header on, which no packet is shorter than.
    let Some(header) = read::<Ipv4>(&ctx, 0) else { return refuse(Verdict::PacketDropped) };
    if header.version_and_length >> 4 == 4 { guard_v4(&ctx, &header) } else { guard_v6(&ctx) }
}

#[inline(always)]
fn guard_v4(ctx: &SkBuffContext, header: &Ipv4) -> i32 {
    if header.destination == METADATA_V4 {
        return to_metadata(ctx);
    }
    if header.protocol != IPPROTO_TCP {
        return PROCEED;
    }
    // A header with options is longer; sockets may set them. Its length is in words.
    let length = (header.version_and_length & 0x0f) as usize * 4;
    let flags = if length == size_of::<Ipv4>() {
        read::<Tcp>(ctx, size_of::<Ipv4>()).map(|tcp| tcp.flags)
    } else {
        ctx.load::<u8>(length + offset_of!(Tcp, flags)).ok()
    };
    match flags {
        Some(flags) if flags & (SYN | ACK) == SYN => syn(ctx, header.destination, length),
        _ => PROCEED,
    }
}

#[inline(always)]
fn guard_v6(ctx: &SkBuffContext) -> i32 {
    let Some(destination) = read::<[u32; 4]>(ctx, IPV6_DESTINATION) else {
        return refuse(Verdict::PacketDropped);
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

/// Only a socket of the node's own namespace, which connect let through, may.
#[inline(never)]
fn to_metadata(ctx: &SkBuffContext) -> i32 {
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Verdict::PacketDropped);
    }
    // SAFETY: the socket was checked to be whole; the storage, if there is one, is its own.
    let fate = unsafe {
        let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
        let kept = bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Socket>();
        if kept.is_null() { 0 } else { (*kept).fate }
    };
    if fate == HOST_NETWORK {
        PROCEED
    } else {
        refuse(Verdict::PacketDropped)
    }
}

/// A SYN to the agent is noted with the cgroup of the socket that sends it.
#[inline(never)]
fn syn(ctx: &SkBuffContext, destination: u32, header: usize) -> i32 {
    let Some(config) = config() else {
        return PROCEED;
    };
    if destination != config.host_v4 {
        return PROCEED;
    }
    let Ok(ports) = ctx.load::<[u16; 2]>(header) else {
        return PROCEED;
    };
    if ports[1] != config.port {
        return PROCEED;
    }
    let Ok(source) = ctx.load::<u32>(offset_of!(Ipv4, source)) else {
        return refuse(Verdict::Forged);
    };
    // Who holds no TCP socket of that address and port has made the packet by hand: nobody may
    // speak for another's connection.
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Verdict::Forged);
    }
    // SAFETY: checked to be a whole socket.
    let sk = unsafe { &*sk };
    if sk.type_ != SOCK_STREAM
        || sk.protocol != IPPROTO_TCP as u32
        || sk.state != TCP_SYN_SENT
        || sk.src_ip4 != source
        || sk.src_port != u16::from_be(ports[0]) as u32
    {
        return refuse(Verdict::Forged);
    }
    // SAFETY: helpers of this program type, with its context.
    let (cgroup, at) = unsafe { (bpf_skb_cgroup_id(ctx.skb.skb), bpf_ktime_get_ns()) };
    let caller = Caller {
        address: source,
        port: ports[0],
        reserved: 0,
    };
    attest(&caller, &Attestation { cgroup, at })
}

#[inline(always)]
fn attest(caller: &Caller, attestation: &Attestation) -> i32 {
    if ATTESTATIONS
        .insert(caller, attestation, BPF_NOEXIST as u64)
        .is_ok()
    {
        count(Verdict::Attested);
        return PROCEED;
    }
    // There is one already, or the map is full.
    // SAFETY: read at once and compared; were it replaced meanwhile, the newer one holds.
    let Some(known) = (unsafe { ATTESTATIONS.get(caller) }) else {
        return refuse(Verdict::Overflow);
    };
    let stale = attestation.at.wrapping_sub(known.at) > ATTESTATION_LIFE_NANOS;
    if known.cgroup != attestation.cgroup && !stale {
        return refuse(Verdict::Contested);
    }
    // The same sender's SYN again, or one whose connection never came about.
    if ATTESTATIONS
        .insert(caller, attestation, BPF_ANY as u64)
        .is_err()
    {
        return refuse(Verdict::Overflow);
    }
    count(Verdict::Attested);
    PROCEED
}

/// The socket that sends the packet, if there is one and it is a whole one.
#[inline(always)]
fn socket(ctx: &SkBuffContext) -> *mut bpf_sock {
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

/// Reads from the packet itself, without a helper.
#[inline(always)]
fn read<T: Copy>(ctx: &SkBuffContext, offset: usize) -> Option<T> {
    // SAFETY: the verifier has seen the bounds checked right here.
    unsafe {
        let start = (*ctx.skb.skb).data as usize;
        let end = (*ctx.skb.skb).data_end as usize;
        if start + offset + size_of::<T>() > end {
            return None;
        }
        Some(core::ptr::read_unaligned((start + offset) as *const T))
    }
}
