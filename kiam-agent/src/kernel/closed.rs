//! How many connections from before the programs were closed. Whoever closes them ends, and agents
//! tell: the count is among the maps, which outlive both.

use std::fmt;
use std::io;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use kiam_ebpf::maps;

use super::KernelError;
use super::error::typed;
use super::pins;

/// The count.
pub struct ClosedCount(Array<MapData, u64>);

impl fmt::Debug for ClosedCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosedCount").finish_non_exhaustive()
    }
}

impl ClosedCount {
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        Ok(Self(map.try_into()?))
    }

    /// As earlier programs keep it, if they do: those of another version may not.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn pinned(bpffs: &Path) -> Result<Option<Self>, KernelError> {
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

    /// How many there were.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<u64, KernelError> {
        typed(maps::CLOSED, self.0.get(&0, 0))
    }

    /// Adds to them. Of two that do so at once, one may be lost.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, connections: u64) -> Result<(), KernelError> {
        let sum = self.read()?.saturating_add(connections);
        typed(maps::CLOSED, self.0.set(0, sum, 0))
    }
}
