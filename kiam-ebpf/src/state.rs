//! The maps, and what all programs do with them.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use kiam_ebpf::{
    Attestation, BUCKETS, Caller, Config, Hook, LAYOUT, MAX_ATTESTATIONS, MAX_HOST_PODS,
    METADATA_V4, TOKEN_KEY_BYTES, Verdict, count_index,
};

use crate::events::{About, report};

/// What a hook answers: let it be, as it may have been rewritten.
pub(crate) const PROCEED: i32 = 1;
/// Refuse it: the caller sees `EPERM`.
pub(crate) const REFUSE: i32 = 0;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub(crate) static ATTESTATIONS: HashMap<Caller, Attestation, { MAX_ATTESTATIONS as usize }> =
    HashMap::new();

/// Written here only, so that no count is lost; what is under way is this less `TAKEN`.
#[btf_map]
pub(crate) static NOTED: Array<u64, { BUCKETS as usize }> = Array::new();

/// Written by agents only, which share its memory.
#[btf_map]
pub(crate) static TAKEN: Array<u64, { BUCKETS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map]
static VERDICTS: PerCpuArray<u64, { kiam_ebpf::VERDICTS }> = PerCpuArray::new();

/// Written by the agent only.
#[btf_map]
pub(crate) static HOST_PODS: HashMap<u64, u32, { MAX_HOST_PODS as usize }> = HashMap::new();

/// Written and read by agents only: it is among the maps so that it outlives them.
#[btf_map]
static CLOSED: Array<u64, 1> = Array::new();

/// As above. A hash map, in which the first who writes an entry can be told.
#[btf_map]
static TOKEN_KEY: HashMap<u32, [u8; TOKEN_KEY_BYTES], 1> = HashMap::new();

/// [`kiam_ebpf::CONTAINER_V4`]. A constant to the verifier, set when the program is loaded.
#[unsafe(no_mangle)]
static CONTAINER_V4: u32 = METADATA_V4;

/// Where containers' SDKs ask; the metadata service's own address if nowhere else.
#[inline(always)]
pub(crate) fn container_v4() -> u32 {
    // SAFETY: an aligned constant; volatile, as the compiler must not know its value.
    unsafe { core::ptr::read_volatile(&raw const CONTAINER_V4) }
}

/// What was decided about a socket when it connected; gone with the socket.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// What was decided about a socket when it connected.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    /// One of the constants below.
    pub(crate) fate: u32,
}

/// It was sent to the agent instead of the metadata service's IPv4 address.
pub(crate) const REDIRECTED_V4: u32 = 1;
/// It was sent to the agent instead of the metadata service's IPv6 address.
pub(crate) const REDIRECTED_V6: u32 = 2;
/// It was sent to the agent instead of the address where containers' SDKs ask.
pub(crate) const REDIRECTED_CONTAINER: u32 = 4;
/// It is of the node's own network namespace, and may talk to the metadata service.
pub(crate) const HOST_NETWORK: u32 = 3;

/// The configuration, unless it is missing or of another layout.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.layout == LAYOUT)
}

#[inline(always)]
pub(crate) fn count(hook: Hook, verdict: Verdict, about: About) {
    report(hook, verdict, about);
    if let Some(count) = VERDICTS.get_ptr_mut(count_index(hook, verdict)) {
        // SAFETY: this CPU's own slot of the map, which lives as long as the program.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
pub(crate) fn refuse(hook: Hook, verdict: Verdict, about: About) -> i32 {
    count(hook, verdict, about);
    REFUSE
}
