//! The key of IMDSv2 tokens: one per node, which outlives the agent and is shared by two agents
//! that overlap. Clients keep a token for hours, and some never request another.
//!
//! With eBPF it is in a pinned map (`kernel::token_key`), otherwise in a file on tmpfs.

mod file;

use std::fmt;

use zeroize::Zeroizing;

/// Length of the key, in bytes.
pub(crate) const KEY_BYTES: usize = 32;

/// The key. Zeroed when dropped; never printed.
#[derive(PartialEq, Eq)]
pub struct TokenKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").finish_non_exhaustive()
    }
}

impl TokenKey {
    /// Generates a key.
    pub fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// Wraps an existing key.
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
    fn debug_output_has_no_key() {
        let key = TokenKey::new(Zeroizing::new([0xab; KEY_BYTES]));
        assert_eq!(format!("{key:?}"), "TokenKey { .. }");
    }
}
