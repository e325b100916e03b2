//! Tokens of IMDSv2: stateless, and valid only for the pod that they were given to.
//!
//! A token has the length and alphabet of the real service's: 40 bytes in padded base64url, 56
//! characters. The C runtime of AWS stores tokens in 64 bytes.
//!
//! ```text
//! bytes   0..4    the prefix of the real service's tokens: AQAEA
//!         4..9    expiration, in seconds since 1970, big-endian
//!         9..16   random
//!        16..40   the first 192 bits of an HMAC-SHA256 over these and the pod
//! ```
//!
//! The key belongs to the node, and outlives the agent: see [`TokenKey`].

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::caller::PodRef;
use crate::token_key::TokenKey;

/// Maximum lifetime of a token, that of the real service: six hours.
pub(super) const MAX_TTL: Duration = Duration::from_secs(21_600);

const TOKEN_BYTES: usize = 40;
const TOKEN_CHARS: usize = TOKEN_BYTES.div_ceil(3) * 4;
/// `AQAEA` in base64; the remaining bits of the fifth letter are zero.
const BEGIN: [u8; 4] = [1, 0, 4, 0];
const TIME_BYTES: usize = 5;
const RANDOM_BYTES: usize = 7;
const SIGNED_BYTES: usize = BEGIN.len() + TIME_BYTES + RANDOM_BYTES;
/// The latest expiration that fits.
const LAST: u64 = (1 << (8 * TIME_BYTES)) - 1;
/// One block of SHA-256: a key of this size is used unchanged.
const BLOCK_BYTES: usize = 64;
/// Separates tokens from other uses of the key.
const PURPOSE: &[u8] = b"kiam: token of IMDSv2, 1\0";

/// Issuer and verifier of tokens.
pub(super) struct Tokens {
    key: Zeroizing<[u8; BLOCK_BYTES]>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(key: &TokenKey) -> Self {
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        for (byte, key) in block.iter_mut().zip(key.bytes()) {
            *byte = *key;
        }
        Self { key: block }
    }

    /// Issues a token for a pod that is valid for `ttl` from `now`.
    pub(super) fn issue(&self, pod: &PodRef, ttl: Duration, now: SystemTime) -> Bytes {
        let until = seconds(now).saturating_add(ttl.as_secs()).min(LAST);
        let [_, _, _, until @ ..] = until.to_be_bytes();
        let random: [u8; RANDOM_BYTES] = rand::random();
        let mut token = [0; TOKEN_BYTES];
        let (signed, hash) = token.split_at_mut(SIGNED_BYTES);
        let parts = BEGIN.iter().chain(&until).chain(&random);
        for (byte, part) in signed.iter_mut().zip(parts) {
            *byte = *part;
        }
        for (byte, part) in hash
            .iter_mut()
            .zip(self.hash(pod, signed).finalize().into_bytes())
        {
            *byte = part;
        }
        URL_SAFE.encode(token).into()
    }

    /// Returns the remaining lifetime in seconds, if the token is this pod's and valid at `now`.
    pub(super) fn verify(&self, token: &[u8], pod: &PodRef, now: SystemTime) -> Option<u32> {
        let token = decode(token)?;
        let (signed, hash) = token.split_at(SIGNED_BYTES);
        let until = signed.iter().skip(BEGIN.len()).take(TIME_BYTES);
        let until = until.fold(0, |until, byte| until << 8 | u64::from(*byte));
        // Compares in constant time.
        self.hash(pod, signed).verify_truncated_left(hash).ok()?;
        let left = until.checked_sub(seconds(now))?;
        u32::try_from(left).ok().filter(|left| *left > 0)
    }

    fn hash(&self, pod: &PodRef, signed: &[u8]) -> Hmac<Sha256> {
        let mut hash = Hmac::<Sha256>::new((&*self.key).into());
        hash.update(PURPOSE);
        hash.update(signed);
        // Separates pods that are identified in different ways.
        hash.update(match pod {
            PodRef::Uid(_) => b"u",
            PodRef::StaticHash(_) => b"s",
            PodRef::Address(_) => b"a",
        });
        // Writing to a hash cannot fail.
        let _ = write!(Feed(&mut hash), "{pod}");
        hash
    }
}

/// Writer into a hash, which avoids a copy of the text for each request.
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

/// Decodes a token, which has exactly one valid spelling.
fn decode(token: &[u8]) -> Option<[u8; TOKEN_BYTES]> {
    if token.len() != TOKEN_CHARS {
        return None;
    }
    // Two more bytes for the padding.
    let mut bytes = [0; TOKEN_BYTES + 2];
    let length = URL_SAFE.decode_slice(token, &mut bytes).ok()?;
    let (token, _padding) = bytes.split_first_chunk()?;
    (length == TOKEN_BYTES && token.starts_with(&BEGIN)).then_some(*token)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::metadata::tests::pod;
    use kiam_common::pod_uid::PodUid;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_valid_for_its_pod_until_it_expires() {
        let tokens = Tokens::new(&TokenKey::random());
        let token = tokens.issue(&pod(1), MINUTE, at(1000));
        assert_eq!(tokens.verify(&token, &pod(1), at(1059)), Some(1));
        assert_eq!(tokens.verify(&token, &pod(1), at(1060)), None);
        assert_eq!(tokens.verify(&token, &pod(2), at(1000)), None);
        let same_name = PodRef::StaticHash(PodUid::new("uid-1"));
        assert_eq!(tokens.verify(&token, &same_name, at(1000)), None);
        // Of another node.
        let other = Tokens::new(&TokenKey::random());
        assert_eq!(other.verify(&token, &pod(1), at(1000)), None);
    }

    #[test]
    fn a_token_outlives_the_agent_that_issued_it() {
        let key = TokenKey::random();
        let token = Tokens::new(&key).issue(&pod(1), MAX_TTL, at(1000));
        assert_eq!(
            Tokens::new(&key).verify(&token, &pod(1), at(22_599)),
            Some(1)
        );
    }

    #[test]
    fn tokens_look_like_those_of_the_real_service_and_differ() {
        let tokens = Tokens::new(&TokenKey::random());
        let all: HashSet<_> = (0..1000)
            .map(|_| tokens.issue(&pod(1), MINUTE, at(1_700_000_000)))
            .collect();
        assert_eq!(all.len(), 1000);
        for token in all {
            let token = std::str::from_utf8(&token).unwrap();
            assert_eq!(token.len(), 56, "{token}");
            let letters = token.strip_suffix("==").expect(token);
            assert!(letters.starts_with("AQAEA"), "{token}");
            let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            assert!(letters.chars().all(letter), "{token}");
        }
    }

    proptest! {
        #[test]
        fn changed_and_random_tokens_are_invalid(
            at_byte in 0..TOKEN_CHARS,
            to in any::<u8>(),
            noise in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let tokens = Tokens::new(&TokenKey::random());
            let token = tokens.issue(&pod(1), MINUTE, at(1000));
            let mut forged = token.to_vec();
            forged[at_byte] = to;
            prop_assert_eq!(tokens.verify(&forged, &pod(1), at(1000)).is_some(), forged == token);
            prop_assert_eq!(tokens.verify(&noise, &pod(1), at(1000)), None);
            prop_assert_eq!(tokens.verify(&token[..at_byte], &pod(1), at(1000)), None);
        }

        #[test]
        fn no_bit_of_a_token_can_be_changed(bit in 0..8 * TOKEN_BYTES) {
            let tokens = Tokens::new(&TokenKey::random());
            let token = tokens.issue(&pod(1), MINUTE, at(1000));
            let mut bytes = decode(&token).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = URL_SAFE.encode(bytes);
            prop_assert_eq!(tokens.verify(forged.as_bytes(), &pod(1), at(1000)), None);
        }
    }
}
