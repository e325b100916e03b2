//! The kernel programs' object, embedded when the agent is built.

/// The object, or nothing if it had not been built before the agent.
pub(super) fn embedded() -> Option<&'static [u8]> {
    #[cfg(kiam_ebpf_object)]
    {
        // The ELF parser reads words: their alignment must be right.
        Some(aya::include_bytes_aligned!(env!("KIAM_EBPF_OBJECT_PATH")))
    }
    #[cfg(not(kiam_ebpf_object))]
    None
}
