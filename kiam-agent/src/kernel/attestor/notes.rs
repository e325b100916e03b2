//! The map of notes. Taking one out is a single step of the kernel's, so that nothing is lost
//! between a look and a removal, and takes no lock.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_ebpf::{Attestation, Caller};

use crate::kernel::sys;

/// The map of notes.
pub(in crate::kernel) struct Notes {
    map: HashMap<MapData, Caller, Attestation>,
    file: OwnedFd,
}

impl Notes {
    pub(in crate::kernel) fn new(map: MapData) -> Result<Self, MapError> {
        let file = map.fd().as_fd().try_clone_to_owned()?;
        // Compares the sizes of key and value.
        let map = HashMap::try_from(Map::HashMap(map))?;
        Ok(Self { map, file })
    }

    /// Takes a note out.
    pub(super) fn take(&self, caller: &Caller) -> io::Result<Option<Attestation>> {
        match sys::take_note(self.file.as_fd(), caller) {
            Ok(note) => Ok(Some(note)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a note back that should not have been taken out, unless there is a newer one.
    pub(super) fn put_back(&self, caller: &Caller, note: Attestation) -> io::Result<()> {
        match sys::put_note(self.file.as_fd(), caller, note) {
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
}
