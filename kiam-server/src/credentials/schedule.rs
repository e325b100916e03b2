//! The time of the next STS call: from the expiration after a success, from the kind of error after
//! a failure.

use std::time::{Duration, SystemTime};

use kiam_common::backoff::Backoff;
use kiam_common::duration;

use super::IssueErrorKind;

/// The shortest interval between calls, however short a session is.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest session that STS issues (STS API reference, `AssumeRole`, `DurationSeconds`).
const SHORTEST_SESSION: Duration = Duration::from_secs(15 * 60);
/// The longest session (same reference). With role chaining AWS allows one hour.
const LONGEST_SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// The error of [`ExpiryContract::new`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// AWS does not issue sessions of this duration.
    #[error(
        "--session-duration is {}; AWS issues sessions of 15m to 12h (1h with role chaining)",
        duration::format(*duration)
    )]
    Duration { duration: Duration },
    /// Sessions would be renewed all the time.
    #[error(
        "--session-refresh is {}; it must be shorter than --session-duration ({})",
        duration::format(*refresh), duration::format(*duration)
    )]
    Refresh {
        refresh: Duration,
        duration: Duration,
    },
}

/// The duration of sessions, and the time before their expiration at which they are renewed.
#[derive(Debug, Clone, Copy)]
pub struct ExpiryContract {
    duration: Duration,
    refresh: Duration,
}

impl ExpiryContract {
    /// Sessions of `duration`, renewed `refresh` before they end.
    ///
    /// # Errors
    /// When AWS does not issue such sessions, or they would be renewed all the time.
    pub fn new(duration: Duration, refresh: Duration) -> Result<Self, ScheduleError> {
        if !(SHORTEST_SESSION..=LONGEST_SESSION).contains(&duration) {
            return Err(ScheduleError::Duration { duration });
        }
        if refresh >= duration {
            return Err(ScheduleError::Refresh { refresh, duration });
        }
        Ok(Self { duration, refresh })
    }

    /// Returns the duration of sessions.
    pub const fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns the renewal time of credentials that were issued at `now` and expire at
    /// `expiration`: `refresh` before the expiration, and up to a tenth of the wait earlier, so
    /// that credentials that were issued together are not renewed together. `random` is in 0..1.
    ///
    /// A session shorter than requested is renewed at half of its lifetime at the latest.
    pub fn renew_at(&self, now: SystemTime, expiration: SystemTime, random: f64) -> SystemTime {
        let life = expiration.duration_since(now).unwrap_or_default();
        let wait = life - self.refresh.min(life / 2);
        let early = wait.mul_f64(0.1 * random.clamp(0.0, 1.0));
        now + (wait - early).max(SHORTEST_INTERVAL)
    }
}

/// The waits after failures, with a separate backoff for each kind.
#[derive(Debug, Clone)]
pub(super) struct Retries {
    kind: Option<IssueErrorKind>,
    backoff: Backoff,
}

impl Retries {
    pub(super) const fn new() -> Self {
        Self {
            kind: None,
            backoff: Self::of(IssueErrorKind::Network),
        }
    }

    const fn of(kind: IssueErrorKind) -> Backoff {
        let (first, limit) = match kind {
            IssueErrorKind::Throttled => (5, 120),
            // Whoever corrects a trust policy waits for the effect.
            IssueErrorKind::AccessDenied | IssueErrorKind::Rejected => (15, 300),
            IssueErrorKind::ServerCredentials => (5, 60),
            IssueErrorKind::Network | IssueErrorKind::Fault => (1, 30),
        };
        Backoff::new(Duration::from_secs(first), Duration::from_secs(limit))
    }

    /// Returns the wait after a failure. It is at most half of `remaining`, the remaining lifetime
    /// of the credentials in use, so that they do not expire because of a failure that is over.
    pub(super) fn after_failure(
        &mut self,
        kind: IssueErrorKind,
        remaining: Duration,
        random: f64,
    ) -> Duration {
        if self.kind != Some(kind) {
            *self = Self {
                kind: Some(kind),
                backoff: Self::of(kind),
            };
        }
        let wait = self.backoff.next(random);
        if remaining.is_zero() {
            return wait;
        }
        wait.min((remaining / 2).max(SHORTEST_INTERVAL))
    }

    pub(super) const fn after_success(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn invalid_durations_are_rejected() {
        for (duration, refresh, expected) in [
            (60, 60, "must be shorter"),
            (60, 90, "must be shorter"),
            (14, 5, "15m to 12h"),
            (721, 5, "15m to 12h"),
        ] {
            let error = ExpiryContract::new(duration * MINUTE, refresh * MINUTE).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(ExpiryContract::new(60 * MINUTE, 30 * MINUTE).is_ok());
    }

    #[test]
    fn a_recovery_is_noticed_before_the_credentials_expire() {
        let mut retries = Retries::new();
        let mut left = 30 * MINUTE;
        let mut tries = 0;
        while left > SHORTEST_INTERVAL {
            let wait = retries.after_failure(IssueErrorKind::AccessDenied, left, 0.5);
            assert!(
                wait <= (left / 2).max(SHORTEST_INTERVAL),
                "{wait:?} of {left:?}"
            );
            left = left.saturating_sub(wait);
            tries += 1;
        }
        assert!(tries < 30, "{tries} calls");
        let wait = retries.after_failure(IssueErrorKind::AccessDenied, Duration::ZERO, 0.5);
        assert!(wait > MINUTE, "not limited after the expiration: {wait:?}");
    }

    proptest! {
        #[test]
        fn renewals_leave_the_promised_lifetime(random in 0.0..1.0, life in 0_u64..100_000) {
            let contract = ExpiryContract::new(60 * MINUTE, 30 * MINUTE).unwrap();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            let life = Duration::from_secs(life);
            let at = contract.renew_at(now, now + life, random);
            let left = (now + life).duration_since(at).unwrap_or_default();
            prop_assert!(at >= now + SHORTEST_INTERVAL);
            if life >= 60 * MINUTE {
                prop_assert!(left >= 30 * MINUTE);
            } else if life > 2 * SHORTEST_INTERVAL {
                prop_assert!(left >= life / 2 - Duration::from_millis(1));
            }
            prop_assert!(at <= now + life.max(SHORTEST_INTERVAL));
        }
    }
}
