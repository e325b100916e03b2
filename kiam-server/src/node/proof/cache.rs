//! A cache of reviewed tokens, so that agents can reconnect without a request to the API, and while
//! the API is down.
//!
//! Only tokens that proved a node are cached, by their hash, until the expiration that they claim
//! (the API has verified the claim by then) or until the pod of the agent changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::agent_pod::AgentPod;
use crate::cluster::object::Pod;

/// The time after a review without a further one.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// The size of the cache: two tokens for each agent of the largest clusters.
pub(super) const MAX_TOKENS: usize = 10_000;

/// The hash of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// The state of a token in the cache.
#[derive(Debug)]
pub(super) enum Known {
    /// Reviewed within [`FRESH`].
    Fresh(AgentPod),
    /// Reviewed before that: accepted while the API is unavailable.
    Stale(AgentPod),
    Unknown,
}

/// Tokens that proved a node.
#[derive(Default)]
pub(super) struct TokenCache {
    by_token: HashMap<Key, Entry>,
}

struct Entry {
    agent: AgentPod,
    /// The pod of the agent at the time of the review.
    pod: Arc<Pod>,
    fresh_until: Instant,
    /// The expiration of the token, by both clocks: the wall clock may be set.
    expires: SystemTime,
    deadline: Instant,
}

impl Entry {
    fn is_valid(&self, now: SystemTime) -> bool {
        now < self.expires && Instant::now() < self.deadline
    }
}

impl TokenCache {
    /// Returns the state of a token. `pod_of` finds a pod by its UID.
    pub(super) fn get(
        &mut self,
        key: &Key,
        now: SystemTime,
        pod_of: impl Fn(&str) -> Option<Arc<Pod>>,
    ) -> Known {
        let Some(entry) = self.by_token.get(key) else {
            return Known::Unknown;
        };
        let same_pod = pod_of(entry.agent.pod_uid.as_str()).is_some_and(|pod| pod == entry.pod);
        if !same_pod || !entry.is_valid(now) {
            self.by_token.remove(key);
            return Known::Unknown;
        }
        let agent = entry.agent.clone();
        if Instant::now() < entry.fresh_until {
            Known::Fresh(agent)
        } else {
            Known::Stale(agent)
        }
    }

    /// Adds a token that the API has just accepted, if it has an expiration.
    pub(super) fn put(
        &mut self,
        key: Key,
        token: &str,
        agent: &AgentPod,
        pod: Arc<Pod>,
        now: SystemTime,
    ) {
        let Some((expires, remaining)) =
            expiry(token).and_then(|expires| Some((expires, expires.duration_since(now).ok()?)))
        else {
            self.by_token.remove(&key);
            return;
        };
        let Some(deadline) = Instant::now().checked_add(remaining) else {
            return;
        };
        if self.by_token.len() >= MAX_TOKENS && !self.by_token.contains_key(&key) {
            self.evict(now);
        }
        let entry = Entry {
            agent: agent.clone(),
            pod,
            fresh_until: Instant::now() + FRESH,
            expires,
            deadline,
        };
        self.by_token.insert(key, entry);
    }

    /// Removes a token.
    pub(super) fn remove(&mut self, key: &Key) {
        self.by_token.remove(key);
    }

    /// Removes the expired tokens, or the one that expires first.
    fn evict(&mut self, now: SystemTime) {
        self.by_token.retain(|_, entry| entry.is_valid(now));
        if self.by_token.len() < MAX_TOKENS {
            return;
        }
        let first = self.by_token.iter().min_by_key(|(_, entry)| entry.expires);
        if let Some(key) = first.map(|(key, _)| *key) {
            self.by_token.remove(&key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_token.len()
    }
}

/// Returns the expiration that a token claims (RFC 7519, `exp`), without verifying the token.
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_expiration_claim_is_read() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, end) in [
            (
                token(r#"{"exp":1800000000,"aud":["x"]}"#),
                at(1_800_000_000),
            ),
            (token(r#"{"exp":-1}"#), None),
            (token(r#"{"exp":"1800000000"}"#), None),
            (token(r#"{"exp":18446744073709551615}"#), None),
            (token("{}"), None),
            (token("["), None),
            ("a.%%%.b".to_owned(), None),
            ("no token".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(expiry(&text), end, "{text}");
        }
    }
}
