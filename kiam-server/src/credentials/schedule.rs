//! When to ask again: after success by the expiration, after failure by its kind.

use std::time::{Duration, SystemTime};

use kiam_common::backoff::Backoff;
use kiam_common::duration;

use super::IssueErrorKind;

/// However short a session is, it is not renewed more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest session that STS issues (STS API reference, `AssumeRole`, `DurationSeconds`).
const SHORTEST_SESSION: Duration = Duration::from_secs(15 * 60);
/// The longest (same place); with role chaining AWS allows one hour.
const LONGEST_SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// Why the durations that were asked for make no contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// AWS issues no such sessions.
    #[error(
        "--session-duration is {}; AWS issues sessions of 15m to 12h (1h with role chaining)",
        duration::format(*duration)
    )]
    Duration {
        /// What was asked for.
        duration: Duration,
    },
    /// There would be nothing but renewals.
    #[error(
        "--session-refresh ({}) must be shorter than --session-duration ({}): sessions are renewed that long before they end",
        duration::format(*refresh), duration::format(*duration)
    )]
    Refresh {
        /// What was asked for.
        refresh: Duration,
        /// What it must be shorter than.
        duration: Duration,
    },
}

/// How long sessions last, and how long before their end they are renewed.
#[derive(Debug, Clone, Copy)]
pub struct ExpiryContract {
    duration: Duration,
    refresh: Duration,
}

impl ExpiryContract {
    /// Sessions of `duration`, renewed `refresh` before they end.
    ///
    /// # Errors
    /// When AWS issues no such sessions, or they would be renewed all the time.
    pub fn new(duration: Duration, refresh: Duration) -> Result<Self, ScheduleError> {
        if !(SHORTEST_SESSION..=LONGEST_SESSION).contains(&duration) {
            return Err(ScheduleError::Duration { duration });
        }
        if refresh >= duration {
            return Err(ScheduleError::Refresh { refresh, duration });
        }
        Ok(Self { duration, refresh })
    }

    /// How long sessions are asked to last.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        self.duration
    }

    /// When to renew what was issued at `now` and expires at `expiration`: early enough that
    /// `refresh` is left, and up to a tenth of the time before that earlier, so that what was
    /// issued together is not renewed together. `random` is in 0..1.
    ///
    /// A session shorter than was asked for is renewed at half of its life at the latest.
    #[must_use]
    pub fn renew_at(&self, now: SystemTime, expiration: SystemTime, random: f64) -> SystemTime {
        let life = expiration.duration_since(now).unwrap_or_default();
        let wait = life - self.refresh.min(life / 2);
        let early = wait.mul_f64(0.1 * random.clamp(0.0, 1.0));
        now + (wait - early).max(SHORTEST_INTERVAL)
    }
}

/// How long to wait after failures: a wait of its own for each kind, since what helps differs.
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
            // Somebody has to change a trust policy, and wants to see that it helped.
            IssueErrorKind::AccessDenied | IssueErrorKind::Rejected => (15, 300),
            IssueErrorKind::ServerCredentials => (5, 60),
            IssueErrorKind::Network | IssueErrorKind::Fault => (1, 30),
        };
        Backoff::new(Duration::from_secs(first), Duration::from_secs(limit))
    }

    /// `left` is how long the credentials in use still live, if there are any: at most half of
    /// that passes before another try, so that nobody loses them to a failure that is over.
    pub(super) fn after_failure(
        &mut self,
        kind: IssueErrorKind,
        left: Duration,
        random: f64,
    ) -> Duration {
        if self.kind != Some(kind) {
            *self = Self {
                kind: Some(kind),
                backoff: Self::of(kind),
            };
        }
        let wait = self.backoff.next(random);
        if left.is_zero() {
            return wait;
        }
        wait.min((left / 2).max(SHORTEST_INTERVAL))
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
    fn impossible_contracts_are_refused() {
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
    fn a_failure_that_ends_before_the_credentials_do_is_noticed_in_time() {
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
        assert!(wait > MINUTE, "what has ended presses no more: {wait:?}");
    }

    proptest! {
        #[test]
        fn renewals_leave_the_promised_life(random in 0.0..1.0, life in 0_u64..100_000) {
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
