//! Session credentials, from STS to a pod.
//!
//! The secret parts are zeroed on drop and never printed.

use std::fmt;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

/// A string that is zeroed on drop and prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Returns the secret. It must not reach a log, a metric or an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(Zeroizing::new(value))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Temporary AWS credentials of one role session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCredentials {
    /// The access key ID, which names the session in CloudTrail. Not a secret.
    pub access_key_id: String,
    /// The key that signs requests.
    pub secret_access_key: Secret,
    /// The token that accompanies every signed request.
    pub session_token: Secret,
    /// The time from which AWS rejects them.
    pub expiration: SystemTime,
    /// The time at which they were issued, by the clock of the server.
    pub issued: SystemTime,
}

impl SessionCredentials {
    /// Returns the remaining lifetime at `now`; zero after the expiration.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.expiration.duration_since(now).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_omits_secrets() {
        let credentials = SessionCredentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: "hunter2".to_owned().into(),
            session_token: "hunter3".to_owned().into(),
            expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(60),
            issued: SystemTime::UNIX_EPOCH,
        };
        let text = format!("{credentials:?}");
        assert!(text.contains("ASIAEXAMPLE"), "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }

    #[test]
    fn the_remaining_lifetime_is_zero_after_the_expiration() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let credentials = SessionCredentials {
            access_key_id: String::new(),
            secret_access_key: String::new().into(),
            session_token: String::new().into(),
            expiration: at(60),
            issued: at(0),
        };
        assert_eq!(credentials.remaining(at(45)), Duration::from_secs(15));
        assert_eq!(credentials.remaining(at(61)), Duration::ZERO);
    }
}
