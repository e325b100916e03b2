//! `cgroup_skb/egress`: lets no packet out to the metadata service, and notes who calls the agent.
//!
//! Runs for every packet that a pod sends, so a packet that is none of its business costs a few
//! reads and comparisons. It sees what connect hooks do not: UDP, raw sockets, connections that
//! were open before. The note is taken when the SYN leaves, before the agent can see it.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id,
    bpf_skb_cgroup_id,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use kiam_ebpf::{
    ATTESTATION_LIFE_NANOS, Attestation, Caller, Hook, MAX_PER_SHARE, MAX_PODS_LEVEL, METADATA_V4,
    METADATA_V6, SHARE_LEVEL, Verdict, bucket,
};

use crate::state::{
    ATTESTATIONS, HOST_NETWORK, NOTED, PROCEED, SOCKETS, Socket, TAKEN, config, count, refuse,
};

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

/// RFC 791: with all the options that there is room for.
const MAX_IPV4: usize = 60;

#[cgroup_skb(egress)]
pub(crate) fn guard(ctx: SkBuffContext) -> i32 {
    // The program sees packets from the network header on, which no packet is shorter than.
    let Some(header) = read::<Ipv4>(&ctx, 0) else {
        return refuse(Hook::Egress, Verdict::PacketDropped);
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
    // A header with options is longer; sockets may set them. Its length is in words.
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
        Some(flags) if flags & (SYN | ACK) == SYN => syn(ctx, header.destination, length),
        _ => PROCEED,
    }
}

#[inline(always)]
fn guard_v6(ctx: &SkBuffContext) -> i32 {
    let Some(destination) = read::<[u32; 4]>(ctx, IPV6_DESTINATION) else {
        return refuse(Hook::Egress, Verdict::PacketDropped);
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

/// Whether the metadata service is in the header's options: a source route goes by way of the
/// destination to an address there (RFC 791).
#[inline(never)]
fn routes_to_metadata(ctx: &SkBuffContext, length: usize) -> bool {
    let mut last: u32 = 0;
    for at in size_of::<Ipv4>()..MAX_IPV4 {
        if at >= length {
            return false;
        }
        let Ok(byte) = ctx.load::<u8>(at) else {
            return false;
        };
        last = last << 8 | u32::from(byte);
        if last == u32::from_be(METADATA_V4) {
            return true;
        }
    }
    false
}

/// Only a socket of the node's own namespace, which connect let through, may.
#[inline(never)]
fn to_metadata(ctx: &SkBuffContext) -> i32 {
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Hook::Egress, Verdict::PacketDropped);
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
        refuse(Hook::Egress, Verdict::PacketDropped)
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
        return refuse(Hook::Egress, Verdict::Forged);
    };
    // Who holds no TCP socket of that address and port has made the packet by hand: nobody may
    // speak for another's connection.
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Hook::Egress, Verdict::Forged);
    }
    // SAFETY: checked to be a whole socket.
    let sk = unsafe { &*sk };
    if sk.type_ != SOCK_STREAM
        || sk.protocol != IPPROTO_TCP as u32
        || sk.state != TCP_SYN_SENT
        || sk.src_ip4 != source
        || sk.src_port != u16::from_be(ports[0]) as u32
    {
        return refuse(Hook::Egress, Verdict::Forged);
    }
    // SAFETY: helpers of this program type, with its context.
    let (cgroup, at) = unsafe { (bpf_skb_cgroup_id(ctx.skb.skb), bpf_ktime_get_ns()) };
    let share = share(ctx, config.pods_cgroup).unwrap_or(cgroup);
    let caller = Caller {
        address: source,
        port: ports[0],
        reserved: 0,
    };
    attest(&caller, &Attestation { cgroup, share, at })
}

/// The pod or container that the socket is in. `None` above these.
#[inline(always)]
fn share(ctx: &SkBuffContext, pods: u64) -> Option<u64> {
    // SAFETY: a helper of this program type, with its context. It knows no cgroup by a level that
    // is deeper than the socket's.
    let ancestor = |level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) };
    let level = (0..MAX_PODS_LEVEL).find(|level| ancestor(*level) == pods)?;
    Some(ancestor(level + SHARE_LEVEL)).filter(|id| *id != 0)
}

/// Makes a note, unless that would be at another's cost.
#[inline(always)]
fn attest(caller: &Caller, attestation: &Attestation) -> i32 {
    // SAFETY: read at once; were it replaced meanwhile, the newer one holds below.
    if let Some(known) = unsafe { ATTESTATIONS.get(caller) } {
        let (cgroup, share, at) = (known.cgroup, known.share, known.at);
        if cgroup == attestation.cgroup {
            // The same SYN again, or the port's last connection never came about.
            if insert(caller, attestation, BPF_EXIST) {
                return attested();
            }
        } else if attestation.at.wrapping_sub(at) <= ATTESTATION_LIFE_NANOS {
            return refuse(Hook::Egress, Verdict::Contested);
        } else if ATTESTATIONS.remove(caller).is_ok() {
            noted(share, MINUS_ONE);
        }
    }
    if under_way(attestation.share) >= u64::from(MAX_PER_SHARE) {
        return refuse(Hook::Egress, Verdict::Flooding);
    }
    // Another may have been quicker: then its note stays, and this SYN is sent again.
    if !insert(caller, attestation, BPF_NOEXIST) {
        return refuse(Hook::Egress, Verdict::Overflow);
    }
    noted(attestation.share, 1);
    attested()
}

#[inline(always)]
fn attested() -> i32 {
    count(Hook::Egress, Verdict::Attested);
    PROCEED
}

#[inline(always)]
fn insert(caller: &Caller, attestation: &Attestation, flags: u32) -> bool {
    ATTESTATIONS
        .insert(caller, attestation, u64::from(flags))
        .is_ok()
}

/// How many notes of this share the agent has not taken out.
#[inline(always)]
fn under_way(share: u64) -> u64 {
    let bucket = bucket(share);
    match (NOTED.get(bucket), TAKEN.get(bucket)) {
        // The two are not read at one moment: the agent may be ahead.
        (Some(noted), Some(taken)) if (noted.wrapping_sub(*taken) as i64) > 0 => {
            noted.wrapping_sub(*taken)
        }
        _ => 0,
    }
}

const MINUS_ONE: u64 = u64::MAX;

#[inline(always)]
fn noted(share: u64, change: u64) {
    if let Some(count) = NOTED.get_ptr_mut(bucket(share)) {
        // SAFETY: adds to a slot of the map, which lives as long as the program. The kernel's atomic
        // addition, for which Rust has no name on this target: it has no compare and exchange.
        unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) change) };
    }
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
    // SAFETY: the verifier has seen the bounds checked right here. Headers are where their fields
    // are aligned, or on machines that do not mind (NET_IP_ALIGN, include/linux/skbuff.h).
    unsafe {
        let start = (*ctx.skb.skb).data as usize;
        let end = (*ctx.skb.skb).data_end as usize;
        if start + offset + size_of::<T>() > end {
            return None;
        }
        Some(core::ptr::read((start + offset) as *const T))
    }
}
