//! The map of notes. Taking one out is a single step of the kernel's, so that nothing is lost
//! between a look and a removal, and takes no lock.
#![expect(
    unsafe_code,
    reason = "aya takes elements out of queues only, not out of hash maps"
)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_ebpf::{Attestation, Caller};

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (include/uapi/linux/bpf.h), for hash maps since Linux 5.14.
const LOOKUP_AND_DELETE: libc::c_int = 21;
/// `BPF_MAP_UPDATE_ELEM`.
const UPDATE: libc::c_int = 2;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// The map of notes.
pub(in crate::kernel) struct Notes {
    map: HashMap<MapData, Caller, Attestation>,
    file: OwnedFd,
}

/// `union bpf_attr`, as far as the commands on elements use it.
#[repr(C, align(8))]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Notes {
    pub(in crate::kernel) fn new(map: MapData) -> Result<Self, MapError> {
        let file = map.fd().as_fd().try_clone_to_owned()?;
        let map = HashMap::try_from(Map::HashMap(map))?;
        Ok(Self { map, file })
    }

    /// Takes a note out.
    pub(super) fn take(&self, caller: &Caller) -> io::Result<Option<Attestation>> {
        let mut note = Attestation {
            cgroup: 0,
            share: 0,
            at: 0,
        };
        match self.command(LOOKUP_AND_DELETE, caller, &mut note, 0) {
            Ok(()) => Ok(Some(note)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a note back that should not have been taken out, unless there is a newer one.
    pub(super) fn put_back(&self, caller: &Caller, mut note: Attestation) -> io::Result<()> {
        match self.command(UPDATE, caller, &mut note, NO_EXIST) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
            _ => Ok(()),
        }
    }

    /// The keys of the notes that `wanted` says yes to.
    pub(super) fn select(
        &self,
        wanted: impl Fn(Attestation) -> bool,
    ) -> Result<Vec<Caller>, MapError> {
        let notes = self.map.iter();
        let selected = notes.filter_map(|entry| match entry {
            Ok((caller, note)) => wanted(note).then_some(Ok(caller)),
            Err(error) => Some(Err(error)),
        });
        selected.collect()
    }

    fn command(
        &self,
        command: libc::c_int,
        caller: &Caller,
        note: &mut Attestation,
        flags: u64,
    ) -> io::Result<()> {
        let mut element = Element {
            map: self.file.as_raw_fd().cast_unsigned(),
            reserved: 0,
            key: &raw const *caller as u64,
            value: &raw mut *note as u64,
            flags,
        };
        // SAFETY: the map's key and value are of these types, whose sizes the constructor has
        // compared; the kernel reads the one, reads or writes the other, and both outlive the
        // call, as does the description of it.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw mut element,
                size_of::<Element>(),
            )
        };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
