//! The key of IMDSv2's tokens: one for a node, which outlives the agent and is shared by two that
//! overlap. Clients keep a token for hours, and some never ask for another.
//!
//! With eBPF it is in a map of the kernel's (`kernel::token_key`), without it in a file in memory.

mod file;

use std::fmt;

use zeroize::Zeroizing;

pub use file::KeyFileError;

/// The key's length, in bytes.
pub const KEY_BYTES: usize = 32;

/// The key. Wiped from memory when it is dropped, and shown to nobody.
#[derive(PartialEq, Eq)]
pub struct TokenKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").finish_non_exhaustive()
    }
}

impl TokenKey {
    /// A new key.
    #[must_use]
    pub fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// A key that is there.
    #[must_use]
    pub const fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown() {
        let key = TokenKey::new(Zeroizing::new([0xab; KEY_BYTES]));
        assert_eq!(format!("{key:?}"), "TokenKey { .. }");
    }
}
