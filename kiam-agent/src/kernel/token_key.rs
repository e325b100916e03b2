//! The key of IMDSv2 tokens in a pinned map: in kernel memory, lost on reboot, and readable only by
//! processes that may open root's pins.

use std::io;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_ebpf::maps;
use zeroize::Zeroizing;

use super::KernelError;
use super::error::typed;
use super::pins;
use crate::token_key::{KEY_BYTES, TokenKey};

const _: () = assert!(KEY_BYTES == kiam_ebpf::TOKEN_KEY_BYTES);
/// The only key of the map.
const ENTRY: u32 = 0;
/// Insert only: of two concurrent writers the first one wins.
const NOEXIST: u64 = 1;

/// Returns the key of the node from the pinned map; the first caller creates it.
pub fn token_key(bpffs: &Path) -> Result<TokenKey, KernelError> {
    let name = maps::TOKEN_KEY;
    let pin = pins::map(bpffs, name).ok_or(KernelError::Missing { name })?;
    typed(name, MapData::from_pin(pin).and_then(read_or_make))
}

fn read_or_make(map: MapData) -> Result<TokenKey, MapError> {
    let mut map: HashMap<_, u32, [u8; KEY_BYTES]> = Map::HashMap(map).try_into()?;
    let new = TokenKey::random();
    match map.insert(ENTRY, new.bytes(), NOEXIST) {
        Ok(()) => return Ok(new),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(TokenKey::new(Zeroizing::new(map.get(&ENTRY, 0)?)))
}
