//! The maps, and the operations on them that all programs share.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use kiam_ebpf::{
    Attestation, BUCKETS, Config, Hook, LAYOUT, MAX_ATTESTATIONS, MAX_HOST_PODS, METADATA_V4, Peer,
    TOKEN_KEY_BYTES, Verdict, count_index,
};

use crate::events::{About, report};

/// Return value of a hook: continue, with the address as it is now.
pub(crate) const PROCEED: i32 = 1;
/// Return value of a hook: refuse, so that the caller sees `EPERM`.
pub(crate) const REFUSE: i32 = 0;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub(crate) static ATTESTATIONS: HashMap<Peer, Attestation, { MAX_ATTESTATIONS as usize }> =
    HashMap::new();

/// Counts recorded attestations ([`kiam_ebpf::maps::RECORDED`]). Written here only, so that no
/// count is lost; the number of pending ones is this less `TAKEN`.
#[btf_map]
pub(crate) static NOTED: Array<u64, { BUCKETS as usize }> = Array::new();

/// Counts consumed attestations ([`kiam_ebpf::maps::CONSUMED`]). Written only by agents, which map
/// its memory.
#[btf_map]
pub(crate) static TAKEN: Array<u64, { BUCKETS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map]
static VERDICTS: PerCpuArray<u64, { kiam_ebpf::VERDICTS }> = PerCpuArray::new();

/// Written only by the agent.
#[btf_map]
pub(crate) static HOST_PODS: HashMap<u64, u32, { MAX_HOST_PODS as usize }> = HashMap::new();

/// Written and read only by agents: it is a pinned map so that it outlives them.
#[btf_map]
static CLOSED: Array<u64, 1> = Array::new();

/// The same. A hash map, since an insertion can tell whether it was the first.
#[btf_map]
static TOKEN_KEY: HashMap<u32, [u8; TOKEN_KEY_BYTES], 1> = HashMap::new();

/// See [`kiam_ebpf::CONTAINER_V4`]. A constant to the verifier, set when the program is loaded.
#[unsafe(no_mangle)]
static CONTAINER_V4: u32 = METADATA_V4;

/// Returns the address of `--container-credentials-address`, or that of the metadata service.
#[inline(always)]
pub(crate) fn container_v4() -> u32 {
    // SAFETY: an aligned constant; volatile, since the compiler must not assume its value.
    unsafe { core::ptr::read_volatile(&raw const CONTAINER_V4) }
}

/// Dispositions of sockets; each entry is freed with its socket.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Disposition of a socket, decided when it connected.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    /// One of the constants below.
    pub(crate) disposition: u32,
}

/// Redirected to the agent from the IPv4 address of the metadata service.
pub(crate) const REDIRECTED_V4: u32 = 1;
/// Redirected to the agent from the IPv6 address of the metadata service.
pub(crate) const REDIRECTED_V6: u32 = 2;
/// Redirected to the agent from the address of `--container-credentials-address`.
pub(crate) const REDIRECTED_CONTAINER: u32 = 4;
/// In the node's network namespace, and permitted to reach the metadata service.
pub(crate) const HOST_NETWORK: u32 = 3;

/// Returns the configuration, unless it is missing or has another layout.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.layout == LAYOUT)
}

#[inline(always)]
pub(crate) fn count(hook: Hook, verdict: Verdict, about: About) {
    report(hook, verdict, about);
    if let Some(count) = VERDICTS.get_ptr_mut(count_index(hook, verdict)) {
        // SAFETY: this CPU's element of the map, which lives as long as the program.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
pub(crate) fn refuse(hook: Hook, verdict: Verdict, about: About) -> i32 {
    count(hook, verdict, about);
    REFUSE
}
