//! Notes for the agent: which cgroup sent a SYN to it. Nobody makes one for another, replaces
//! another's, or uses up what there is room for.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::SkBuffContext;
use kiam_ebpf::{
    ATTESTATION_LIFE_NANOS, Attestation, Caller, Hook, MAX_PER_SHARE, MAX_PODS_LEVEL, SHARE_LEVEL,
    Verdict, bucket,
};

use crate::packet::{IPPROTO_TCP, Ipv4, sender, socket};
use crate::state::{ATTESTATIONS, NOTED, PROCEED, TAKEN, config, count, refuse};

const SOCK_STREAM: u32 = 1;
const TCP_SYN_SENT: u32 = 2;

/// A SYN to the agent is noted with the cgroup of the socket that sends it.
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
    // Who holds no TCP socket of that address and port has made the packet by hand: nobody may
    // speak for another's connection.
    let sk = socket(ctx);
    if sk.is_null() {
        return refuse(Hook::Egress, Verdict::Forged, sender(ctx));
    }
    // SAFETY: checked to be a whole socket.
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
    let share = share(ctx, config.pods_cgroup).unwrap_or(cgroup);
    let caller = Caller {
        address: source,
        port: ports[0],
        reserved: 0,
    };
    note(ctx, &caller, &Attestation { cgroup, share, at })
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
fn note(ctx: &SkBuffContext, caller: &Caller, attestation: &Attestation) -> i32 {
    // SAFETY: read at once; were it replaced meanwhile, the newer one holds below.
    if let Some(known) = unsafe { ATTESTATIONS.get(caller) } {
        let (cgroup, share, at) = (known.cgroup, known.share, known.at);
        if cgroup == attestation.cgroup {
            // The same SYN again, or the port's last connection never came about.
            if insert(caller, attestation, BPF_EXIST) {
                return attested(ctx);
            }
        } else if attestation.at.wrapping_sub(at) <= ATTESTATION_LIFE_NANOS {
            return refuse(Hook::Egress, Verdict::Contested, sender(ctx));
        } else if ATTESTATIONS.remove(caller).is_ok() {
            noted(share, MINUS_ONE);
        }
    }
    if under_way(attestation.share) >= u64::from(MAX_PER_SHARE) {
        return refuse(Hook::Egress, Verdict::Flooding, sender(ctx));
    }
    // Another may have been quicker: then its note stays, and this SYN is sent again.
    if !insert(caller, attestation, BPF_NOEXIST) {
        return refuse(Hook::Egress, Verdict::Overflow, sender(ctx));
    }
    noted(attestation.share, 1);
    attested(ctx)
}

#[inline(always)]
fn attested(ctx: &SkBuffContext) -> i32 {
    count(Hook::Egress, Verdict::Attested, sender(ctx));
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
