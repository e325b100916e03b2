//! Tokens of IMDSv2: kept nowhere, and good only for the pod that they were given to.
//!
//! A token is the time at which it ends and a keyed hash of that and of the pod. The key is made
//! anew when the agent starts: a token from before is refused with 401, upon which SDKs ask for
//! another.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::caller::PodRef;

/// The longest life of a token, as the real service has it: six hours.
pub(super) const MAX_TTL: Duration = Duration::from_secs(21_600);

const TIME_BYTES: usize = 8;
const HASH_BYTES: usize = 32;
/// One block of SHA-256: a key of this size is used as it is.
const KEY_BYTES: usize = 64;
const TOKEN_CHARS: usize = 2 * (TIME_BYTES + HASH_BYTES);
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Gives tokens, and knows them again.
pub(super) struct Tokens {
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// With a key of their own.
    pub(super) fn new() -> Self {
        Self {
            key: Zeroizing::new(rand::random()),
        }
    }

    /// A token for a pod that is good until `ttl` from `now`.
    pub(super) fn issue(&self, pod: &PodRef, ttl: Duration, now: SystemTime) -> Bytes {
        let until = seconds(now).saturating_add(ttl.as_secs()).to_be_bytes();
        let hash = self.hash(pod, until).finalize().into_bytes();
        let bytes = until.iter().chain(&*hash);
        bytes
            .flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])
            .collect()
    }

    /// Whether a token is this pod's and still good at `now`.
    pub(super) fn verify(&self, token: &[u8], pod: &PodRef, now: SystemTime) -> bool {
        let Some(bytes) = decode(token) else {
            return false;
        };
        let (until, hash) = bytes.split_at(TIME_BYTES);
        let Ok(until) = until.try_into() else {
            return false;
        };
        // Compared in constant time.
        self.hash(pod, until).verify_slice(hash).is_ok() && u64::from_be_bytes(until) > seconds(now)
    }

    fn hash(&self, pod: &PodRef, until: [u8; TIME_BYTES]) -> Hmac<Sha256> {
        let mut hash = Hmac::<Sha256>::new((&*self.key).into());
        hash.update(&until);
        // Feeding a hash cannot fail.
        let _ = write!(Feed(&mut hash), "{pod}");
        hash
    }
}

/// Takes text into a hash as it is written, without a copy of it: each request has a token.
struct Feed<'a>(&'a mut Hmac<Sha256>);

impl fmt::Write for Feed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn decode(token: &[u8]) -> Option<[u8; TIME_BYTES + HASH_BYTES]> {
    if token.len() != TOKEN_CHARS {
        return None;
    }
    let digit = |char: u8| match char {
        b'0'..=b'9' => Some(char - b'0'),
        b'a'..=b'f' => Some(char - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; TIME_BYTES + HASH_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(token.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::tests::pod;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_its_pod_s_until_it_ends() {
        let tokens = Tokens::new();
        let token = tokens.issue(&pod(1), Duration::from_secs(60), at(1000));
        assert!(tokens.verify(&token, &pod(1), at(1059)));
        assert!(!tokens.verify(&token, &pod(1), at(1060)));
        assert!(!tokens.verify(&token, &pod(2), at(1000)));
        // Of another agent, or this one before it was started again.
        assert!(!Tokens::new().verify(&token, &pod(1), at(1000)));
    }

    proptest! {
        #[test]
        fn no_other_token_is_good(
            at_byte in 0..TOKEN_CHARS,
            to in any::<u8>(),
            noise in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let tokens = Tokens::new();
            let token = tokens.issue(&pod(1), Duration::from_secs(60), at(1000));
            let mut forged = token.to_vec();
            forged[at_byte] = to;
            prop_assert_eq!(tokens.verify(&forged, &pod(1), at(1000)), forged == token);
            prop_assert!(!tokens.verify(&noise, &pod(1), at(1000)));
            prop_assert!(!tokens.verify(&token[..at_byte], &pod(1), at(1000)));
        }
    }
}
