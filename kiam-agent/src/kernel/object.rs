//! The object file of the kernel programs, embedded at build time.

/// Returns the object; `None` if it was not built before the agent.
pub(super) fn embedded() -> Option<&'static [u8]> {
    #[cfg(kiam_ebpf_object)]
    {
        // The ELF parser needs aligned words.
        Some(aya::include_bytes_aligned!(env!("KIAM_EBPF_OBJECT_PATH")))
    }
    #[cfg(not(kiam_ebpf_object))]
    None
}
