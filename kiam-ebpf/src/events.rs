//! Decisions of the programs, one by one, for `--kernel-log`.
//!
//! The level is a constant to the verifier, which removes all of this where nothing is logged. An
//! event is one value that one helper copies: without `CAP_PERFMON` the verifier also walks the
//! branches that speculative execution may take (`sanitize_speculative_path` in
//! kernel/bpf/verifier.c), and before Linux 6.17 an error there rejects the program.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_skb_cgroup_id};
use aya_ebpf::macros::btf_map;
use kiam_ebpf::{EVENTS_SIZE, Event, Hook, Verdict, event_level};

#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_SIZE as usize }> = RingBuf::new();

/// See [`kiam_ebpf::EVENT_LEVEL`].
#[unsafe(no_mangle)]
static EVENT_LEVEL: u32 = event_level::OFF;

/// Subject of a decision.
#[derive(Clone, Copy)]
pub(crate) enum About {
    /// The current process.
    Caller,
    /// The socket that sends this packet.
    Sender(*mut __sk_buff),
}

/// Reports one decision.
#[inline(always)]
pub(crate) fn report(hook: Hook, verdict: Verdict, about: About) {
    let level = if verdict.is_refusal() {
        event_level::REFUSED
    } else {
        event_level::ALL
    };
    // SAFETY: an aligned constant; volatile, since the compiler must not assume its value.
    if level > unsafe { core::ptr::read_volatile(&raw const EVENT_LEVEL) } {
        return;
    }
    // SAFETY: helpers of the program types that use the respective variant (since Linux 4.18).
    let cgroup = unsafe {
        match about {
            About::Caller => bpf_get_current_cgroup_id(),
            About::Sender(packet) => bpf_skb_cgroup_id(packet),
        }
    };
    submit(hook as u32, verdict as u32, cgroup);
}

#[inline(never)]
fn submit(hook: u32, verdict: u32, cgroup: u64) {
    let event = Event {
        hook,
        verdict,
        cgroup,
    };
    // A full buffer loses the event; the verdict is counted in any case.
    let _full = EVENTS.output(event, 0);
}
