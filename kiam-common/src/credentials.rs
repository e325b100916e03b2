//! Session credentials: what STS gave, on its way to a pod.
//!
//! The secret parts are zeroed when dropped and never printed.

use std::fmt;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

/// A string that is zeroed when dropped and prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret itself. Whoever calls this must not let it reach a log, a metric or an error.
    #[must_use]
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
    /// Names the session in AWS's logs; not a secret.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: Secret,
    /// Sent along with every signed request.
    pub session_token: Secret,
    /// When AWS stops accepting them.
    pub expiration: SystemTime,
    /// When they were issued, by the clock of the server that asked.
    pub issued: SystemTime,
}

impl SessionCredentials {
    /// The life that is left at `now`; zero once expired.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.expiration.duration_since(now).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
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
    fn remaining_life_never_goes_below_zero() {
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
