//! The map of attestations. Consuming one is a single step in the kernel: no lock is needed, and
//! nothing is lost between a lookup and a removal.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_ebpf::{Attestation, Peer};

use crate::kernel::sys;

/// The pinned map of attestations.
pub(in crate::kernel) struct Attestations {
    map: HashMap<MapData, Peer, Attestation>,
    file: OwnedFd,
}

impl Attestations {
    pub(in crate::kernel) fn new(map: MapData) -> Result<Self, MapError> {
        let file = map.fd().as_fd().try_clone_to_owned()?;
        // Compares the sizes of key and value.
        let map = HashMap::try_from(Map::HashMap(map))?;
        Ok(Self { map, file })
    }

    /// Looks up and removes an attestation.
    pub(super) fn take(&self, peer: &Peer) -> io::Result<Option<Attestation>> {
        match sys::lookup_and_delete(self.file.as_fd(), peer) {
            Ok(attestation) => Ok(Some(attestation)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts back an attestation that should not have been removed, unless there is a newer one.
    pub(super) fn put_back(&self, peer: &Peer, attestation: Attestation) -> io::Result<()> {
        match sys::insert_new(self.file.as_fd(), peer, attestation) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the keys of the attestations that match a condition.
    pub(super) fn select(
        &self,
        wanted: impl Fn(Attestation) -> bool,
    ) -> Result<Vec<Peer>, MapError> {
        let attestations = self.map.iter();
        let selected = attestations.filter_map(|entry| match entry {
            Ok((peer, attestation)) => wanted(attestation).then_some(Ok(peer)),
            Err(error) => Some(Err(error)),
        });
        selected.collect()
    }
}
