//! Tokens that were reviewed: so that an agent that comes back costs the API nothing, and can come
//! back while the API is down.
//!
//! Only what proved a node is remembered, by the token's hash, and never for longer than the token
//! lives by its own word (which the API has verified by then) or than the agent's pod stays as it was.

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

/// For so long the API is not asked again.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// Tokens that are remembered: two of each agent in the largest clusters.
pub(super) const MAX_REMEMBERED: usize = 10_000;

/// A token's hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// What is known of a token without a question.
#[derive(Debug)]
pub(super) enum Known {
    /// It was reviewed a moment ago.
    Fresh(AgentPod),
    /// It was good when it was reviewed; good enough while the API cannot be asked.
    Stale(AgentPod),
    /// Nothing.
    Unknown,
}

/// The tokens that proved a node.
#[derive(Default)]
pub(super) struct Remembered {
    by_token: HashMap<Key, Entry>,
}

struct Entry {
    agent: AgentPod,
    /// The agent's pod as it was when the API was asked.
    pod: Arc<Pod>,
    fresh_until: Instant,
    /// The token's end by both clocks: the wall clock may be set.
    expires: SystemTime,
    ends: Instant,
}

impl Entry {
    fn lives(&self, now: SystemTime) -> bool {
        now < self.expires && Instant::now() < self.ends
    }
}

impl Remembered {
    /// What is known of a token now; `pod_of` finds a pod by its UID.
    pub(super) fn get(
        &mut self,
        key: &Key,
        now: SystemTime,
        pod_of: impl Fn(&str) -> Option<Arc<Pod>>,
    ) -> Known {
        let Some(entry) = self.by_token.get(key) else {
            return Known::Unknown;
        };
        let same_pod = pod_of(&entry.agent.pod_uid).is_some_and(|pod| pod == entry.pod);
        if !same_pod || !entry.lives(now) {
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

    /// Remembers what the API has just said of a token, if the token says how long it lives.
    pub(super) fn put(
        &mut self,
        key: Key,
        token: &str,
        agent: &AgentPod,
        pod: Arc<Pod>,
        now: SystemTime,
    ) {
        let Some((expires, left)) =
            expiry(token).and_then(|expires| Some((expires, expires.duration_since(now).ok()?)))
        else {
            self.by_token.remove(&key);
            return;
        };
        let Some(ends) = Instant::now().checked_add(left) else {
            return;
        };
        if self.by_token.len() >= MAX_REMEMBERED && !self.by_token.contains_key(&key) {
            self.make_room(now);
        }
        let entry = Entry {
            agent: agent.clone(),
            pod,
            fresh_until: Instant::now() + FRESH,
            expires,
            ends,
        };
        self.by_token.insert(key, entry);
    }

    /// The API no longer accepts it.
    pub(super) fn forget(&mut self, key: &Key) {
        self.by_token.remove(key);
    }

    /// Ends what has expired; without any, what expires first.
    fn make_room(&mut self, now: SystemTime) {
        self.by_token.retain(|_, entry| entry.lives(now));
        if self.by_token.len() < MAX_REMEMBERED {
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

/// When a token ends, by its own claim (RFC 7519, `exp`). Nothing is verified here.
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
    fn a_token_s_end_is_read_and_nothing_else_is_taken_for_one() {
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
