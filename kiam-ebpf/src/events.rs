//! What the programs decide, one by one, for whoever listens. Where nobody does the verifier takes
//! all of it out, as the level is a constant to it: then it costs nothing, and needs no newer kernel.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_skb_cgroup_id};
use aya_log_ebpf::log;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use kiam_ebpf::{Hook, Verdict};

/// Who is decided about.
#[derive(Clone, Copy)]
pub(crate) enum About {
    /// The process that runs.
    Caller,
    /// Whoever sends this packet.
    Sender(*mut __sk_buff),
}

/// Tells one decision.
#[inline(always)]
pub(crate) fn tell(hook: Hook, verdict: Verdict, about: About) {
    let level = if verdict.is_refusal() {
        Level::Info
    } else {
        Level::Debug
    };
    if level_enabled(level) {
        // SAFETY: helpers of the program types that each is about (since Linux 4.18).
        let cgroup = unsafe {
            match about {
                About::Caller => bpf_get_current_cgroup_id(),
                About::Sender(packet) => bpf_skb_cgroup_id(packet),
            }
        };
        told(hook as u32, verdict as u32, cgroup, level);
    }
}

#[inline(never)]
fn told(hook: u32, verdict: u32, cgroup: u64, level: Level) {
    // Numbers, which the agent has the names of.
    log!((), level, "{} {} {}", hook, verdict, cgroup);
}
