//! Number of consumed attestations, by bucket: shared memory that the guard reads, and that two
//! agents add to while one takes over from the other.
#![expect(unsafe_code, reason = "shared memory of a map")]

use std::io;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, MapError};
use kiam_ebpf::BUCKETS;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const LENGTH: usize = BUCKETS as usize * size_of::<u64>();

/// The mapped counts.
pub(in crate::kernel) struct ConsumedCounts(NonNull<[AtomicU64]>);

// SAFETY: the memory belongs to no thread, and is written by atomic additions only.
unsafe impl Send for ConsumedCounts {}
// SAFETY: the same as for `Send`.
unsafe impl Sync for ConsumedCounts {}

impl ConsumedCounts {
    /// Maps the counts in `map`: an array of [`BUCKETS`] numbers of eight bytes.
    pub(in crate::kernel) fn new(map: &MapData) -> Result<Self, MapError> {
        let length = LENGTH.try_into().map_err(io::Error::other)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses. The kernel rejects a length
        // that differs from the map's (`array_map_mmap` in kernel/bpf/arraymap.c).
        let memory = unsafe {
            mmap(
                None,
                length,
                access,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        };
        let memory = memory.map_err(io::Error::from)?;
        let counts = NonNull::slice_from_raw_parts(memory.cast(), BUCKETS as usize);
        Ok(Self(counts))
    }

    pub(super) fn count(&self, bucket: u32) {
        // SAFETY: mapped as long as this value exists, aligned to a page, and of this length.
        let counts = unsafe { self.0.as_ref() };
        if let Some(count) = counts.get(bucket as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for ConsumedCounts {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing borrows from it any more.
        let _unmapped = unsafe { munmap(self.0.cast(), LENGTH) };
    }
}
