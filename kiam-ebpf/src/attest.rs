//! Attestations: for each SYN to the agent, the cgroup of the socket that sent it. No pod can make
//! an attestation for another pod, replace one of another pod, or use up the space of the others.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::SkBuffContext;
use kiam_ebpf::{
    ATTESTATION_LIFE_NANOS, Attestation, Hook, MAX_PER_QUOTA_CGROUP, MAX_PODS_LEVEL, Peer,
    QUOTA_CGROUP_LEVEL, Verdict, bucket,
};

use crate::packet::{IPPROTO_TCP, Ipv4, sender, socket};
use crate::state::{ATTESTATIONS, NOTED, PROCEED, TAKEN, config, count, refuse};

const SOCK_STREAM: u32 = 1;
const TCP_SYN_SENT: u32 = 2;

/// Records the cgroup of the socket that sends a SYN to the agent.
#[inline(never)]
pub(crate) fn attest(ctx: &SkBuffContext, destination: u32, header: usize) -> i32 {
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
        return refuse(Hook::Egress, Verdict::Forged, sender(ctx));
    };
    // Without a TCP socket of that address and port the packet was made by hand: no process may
    // attest to a connection of another.
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Hook::Egress, Verdict::Forged, sender(ctx));
    }
    // SAFETY: checked to be a full socket.
    let sk = unsafe { &*sk };
    if sk.type_ != SOCK_STREAM
        || sk.protocol != IPPROTO_TCP as u32
        || sk.state != TCP_SYN_SENT
        || sk.src_ip4 != source
        || sk.src_port != u16::from_be(ports[0]) as u32
    {
        return refuse(Hook::Egress, Verdict::Forged, sender(ctx));
    }
    // SAFETY: helpers of this program type, with its context.
    let (cgroup, at) = unsafe { (bpf_skb_cgroup_id(ctx.skb.skb), bpf_ktime_get_ns()) };
    let quota_cgroup = quota_cgroup(ctx, config.pods_cgroup).unwrap_or(cgroup);
    let peer = Peer {
        address: source,
        port: ports[0],
        reserved: 0,
    };
    record(
        ctx,
        &peer,
        &Attestation {
            cgroup,
            quota_cgroup,
            at,
        },
    )
}

/// Returns the cgroup of the pod or container that the socket is in; `None` for a socket above
/// these.
#[inline(always)]
fn quota_cgroup(ctx: &SkBuffContext, pods: u64) -> Option<u64> {
    // SAFETY: a helper of this program type, with its context. It returns zero for a level that is
    // deeper than the socket's cgroup.
    let ancestor = |level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) };
    let level = (0..MAX_PODS_LEVEL).find(|level| ancestor(*level) == pods)?;
    Some(ancestor(level + QUOTA_CGROUP_LEVEL)).filter(|id| *id != 0)
}

/// Records an attestation, unless another pod would pay for it.
#[inline(always)]
fn record(ctx: &SkBuffContext, peer: &Peer, attestation: &Attestation) -> i32 {
    // SAFETY: read at once; if it is replaced meanwhile, the newer one holds below.
    if let Some(known) = unsafe { ATTESTATIONS.get(peer) } {
        let (cgroup, quota_cgroup, at) = (known.cgroup, known.quota_cgroup, known.at);
        if cgroup == attestation.cgroup {
            // A retransmitted SYN, or the last connection from this port was never established.
            if insert(peer, attestation, BPF_EXIST) {
                return attested(ctx);
            }
        } else if attestation.at.wrapping_sub(at) <= ATTESTATION_LIFE_NANOS {
            return refuse(Hook::Egress, Verdict::Contested, sender(ctx));
        } else if ATTESTATIONS.remove(peer).is_ok() {
            add_recorded(quota_cgroup, MINUS_ONE);
        }
    }
    if pending(attestation.quota_cgroup) >= u64::from(MAX_PER_QUOTA_CGROUP) {
        return refuse(Hook::Egress, Verdict::Flooding, sender(ctx));
    }
    // Another CPU may have been quicker: its attestation stays, and this SYN is retransmitted.
    if !insert(peer, attestation, BPF_NOEXIST) {
        return refuse(Hook::Egress, Verdict::Overflow, sender(ctx));
    }
    add_recorded(attestation.quota_cgroup, 1);
    attested(ctx)
}

#[inline(always)]
fn attested(ctx: &SkBuffContext) -> i32 {
    count(Hook::Egress, Verdict::Attested, sender(ctx));
    PROCEED
}

#[inline(always)]
fn insert(peer: &Peer, attestation: &Attestation, flags: u32) -> bool {
    ATTESTATIONS
        .insert(peer, attestation, u64::from(flags))
        .is_ok()
}

/// Returns the number of attestations of this quota cgroup that the agent has not consumed.
#[inline(always)]
fn pending(quota_cgroup: u64) -> u64 {
    let bucket = bucket(quota_cgroup);
    match (NOTED.get(bucket), TAKEN.get(bucket)) {
        // The two are not read at the same moment: the agent may be ahead.
        (Some(recorded), Some(consumed)) if (recorded.wrapping_sub(*consumed) as i64) > 0 => {
            recorded.wrapping_sub(*consumed)
        }
        _ => 0,
    }
}

const MINUS_ONE: u64 = u64::MAX;

#[inline(always)]
fn add_recorded(quota_cgroup: u64, change: u64) {
    if let Some(count) = NOTED.get_ptr_mut(bucket(quota_cgroup)) {
        // SAFETY: adds to an element of the map, which lives as long as the program. The
        // instruction is the kernel's atomic addition; Rust has no name for it on this target,
        // which has no compare and exchange.
        unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) change) };
    }
}
