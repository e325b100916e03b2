//! Number of closed connections that were older than the programs. The process that closes them
//! exits, and agents report the number: it is in a pinned map, which outlives both.

use std::fmt;
use std::io;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use kiam_ebpf::maps;

use super::KernelError;
use super::error::typed;
use super::pins;

/// The pinned count.
pub(crate) struct ClosedCount(Array<MapData, u64>);

impl fmt::Debug for ClosedCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosedCount").finish_non_exhaustive()
    }
}

impl ClosedCount {
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        Ok(Self(map.try_into()?))
    }

    /// Opens the count of earlier programs; `None` if their version has none.
    pub(crate) fn pinned(bpffs: &Path) -> Result<Option<Self>, KernelError> {
        let Some(pin) = pins::map(bpffs, maps::CLOSED) else {
            return Ok(None);
        };
        match MapData::from_pin(pin) {
            Ok(map) => typed(maps::CLOSED, Self::new(Map::Array(map))).map(Some),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => typed(maps::CLOSED, Err(error)),
        }
    }

    /// Returns the count.
    pub(crate) fn read(&self) -> Result<u64, KernelError> {
        typed(maps::CLOSED, self.0.get(&0, 0))
    }

    /// Adds to the count. Concurrent additions may be lost.
    pub(crate) fn add(&mut self, connections: u64) -> Result<(), KernelError> {
        let sum = self.read()?.saturating_add(connections);
        typed(maps::CLOSED, self.0.set(0, sum, 0))
    }
}
