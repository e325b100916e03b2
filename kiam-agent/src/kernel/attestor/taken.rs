//! How many notes were taken out, by bucket: memory that the guard reads, and that two agents
//! count in together while one takes over from the other.
#![expect(unsafe_code, reason = "shared memory of a map")]

use std::io;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, MapError};
use kiam_ebpf::BUCKETS;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const LENGTH: usize = BUCKETS as usize * size_of::<u64>();

/// The counts.
pub(in crate::kernel) struct Taken(NonNull<[AtomicU64]>);

// SAFETY: the memory belongs to no thread, and is written by atomic additions only.
unsafe impl Send for Taken {}
// SAFETY: as above.
unsafe impl Sync for Taken {}

impl Taken {
    /// Maps the counts that `map` holds: an array of [`BUCKETS`] numbers of eight bytes.
    pub(in crate::kernel) fn new(map: &MapData) -> Result<Self, MapError> {
        let length = LENGTH.try_into().map_err(io::Error::other)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice. The kernel refuses a length
        // that the map does not have (`array_map_mmap` in kernel/bpf/arraymap.c).
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
        // SAFETY: mapped as long as this lives, aligned as a page is, and as long as it says.
        let counts = unsafe { self.0.as_ref() };
        if let Some(count) = counts.get(bucket as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing borrows from it any more.
        let _unmapped = unsafe { munmap(self.0.cast(), LENGTH) };
    }
}
