//! The keys that were given out, and who they make their holder.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::request::AssumeRole;
use super::{ACCOUNT, Keys};

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Expired keys are remembered for this long, to be answered with what they are.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(1);
/// Expired keys are looked for once in so many issues.
const SWEEP_EVERY: usize = 1024;

/// Identity of the holder of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Principal {
    pub(super) arn: String,
    pub(super) account: String,
    pub(super) user_id: String,
    /// None for a user, whose keys stay.
    expiration: Option<Timestamp>,
}

/// Credentials that were issued under an access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The role's session, as `GetCallerIdentity` names it.
    pub arn: String,
    /// When the key ends.
    pub expiration: Timestamp,
}

#[derive(Debug)]
pub(super) struct Issued {
    server: Keys,
    keys: HashMap<String, (Keys, Principal)>,
    count: usize,
}

impl Principal {
    pub(super) fn expired(&self, now: Timestamp) -> bool {
        self.expiration.is_some_and(|expiration| expiration <= now)
    }

    /// Pods' sessions may not: who has got at one has got at one.
    pub(super) const fn may_assume_roles(&self) -> bool {
        self.expiration.is_none()
    }
}

impl Default for Issued {
    fn default() -> Self {
        let server = Keys {
            access_key: format!("AKIA{}", random(BASE32, 16)),
            secret_key: random(BASE64, 40),
            session_token: None,
        };
        let user = Principal {
            arn: format!("arn:aws:iam::{ACCOUNT}:user/kiam-server"),
            account: ACCOUNT.to_owned(),
            user_id: "AIDAKIAMSERVERSUSER00".to_owned(),
            expiration: None,
        };
        let keys = HashMap::from([(server.access_key.clone(), (server.clone(), user))]);
        Self {
            server,
            keys,
            count: 0,
        }
    }
}

impl Issued {
    pub(super) fn server_keys(&self) -> Keys {
        self.server.clone()
    }

    pub(super) fn find(&self, access_key: &str) -> Option<&(Keys, Principal)> {
        self.keys.get(access_key)
    }

    pub(super) fn record(&self, access_key: &str) -> Option<Record> {
        let (_, principal) = self.find(access_key)?;
        Some(Record {
            arn: principal.arn.clone(),
            expiration: principal.expiration?,
        })
    }

    /// All that must be seen nowhere.
    pub(super) fn secrets(&self) -> Vec<String> {
        let keys = self.keys.values();
        keys.flat_map(|(keys, _)| [Some(keys.secret_key.clone()), keys.session_token.clone()])
            .flatten()
            .collect()
    }

    pub(super) fn issue(
        &mut self,
        wanted: &AssumeRole,
        expiration: Timestamp,
    ) -> (Keys, Principal) {
        self.count += 1;
        if self.count.is_multiple_of(SWEEP_EVERY) {
            let now = Timestamp::now();
            self.keys.retain(|_, (_, principal)| {
                principal
                    .expiration
                    .is_none_or(|end| end + REMEMBERED > now)
            });
        }
        let keys = Keys {
            access_key: format!("ASIA{}", random(BASE32, 16)),
            secret_key: random(BASE64, 40),
            session_token: Some(format!("{}=", random(BASE64, 355))),
        };
        let [partition, account] =
            [1, 4].map(|at| wanted.role.split(':').nth(at).unwrap_or_default());
        let name = wanted.role.rsplit('/').next().unwrap_or_default();
        let session = &wanted.session;
        let principal = Principal {
            // A role's path is not in its sessions' names.
            arn: format!("arn:{partition}:sts::{account}:assumed-role/{name}/{session}"),
            account: account.to_owned(),
            user_id: format!("{}:{session}", role_id(&wanted.role)),
            expiration: Some(expiration),
        };
        let entry = (keys.clone(), principal.clone());
        self.keys.insert(keys.access_key.clone(), entry);
        (keys, principal)
    }
}

/// A role's unique id: the same for the same role.
fn role_id(arn: &str) -> String {
    let digest = Sha256::digest(arn);
    let letters = digest
        .iter()
        .take(17)
        .map(|byte| char::from(BASE32[usize::from(byte % 32)]));
    format!("AROA{}", letters.collect::<String>())
}

fn random(alphabet: &[u8], length: usize) -> String {
    let letter = |_| char::from(alphabet[rand::random_range(0..alphabet.len())]);
    (0..length).map(letter).collect()
}
