//! Exponential backoff with jitter and an upper limit.

use std::time::Duration;

/// The waits after consecutive failures. Call [`Backoff::reset`] after a success.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that starts at about `first` and doubles with each failure, up to `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self {
            first,
            limit,
            failures: 0,
        }
    }

    /// Returns the next wait. `random` in 0..1 scales it between half and its full length, so that
    /// callers that failed together do not retry together.
    pub fn next(&mut self, random: f64) -> Duration {
        let factor = 2_u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let whole = self.first.saturating_mul(factor).min(self.limit);
        whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// Starts over with the first wait.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the number of failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_up_to_the_limit(
            first in 1_u64..10_000,
            limit in 1_u64..1_000_000,
            random in 0.0..1.0,
            tries in 1_usize..200,
        ) {
            let limit = Duration::from_millis(limit.max(first));
            let mut backoff = Backoff::new(Duration::from_millis(first), limit);
            let mut last = Duration::ZERO;
            for _ in 0..tries {
                let wait = backoff.next(random);
                prop_assert!(wait >= last && wait <= limit);
                last = wait;
            }
            backoff.reset();
            prop_assert!(backoff.next(random) <= Duration::from_millis(first));
        }
    }
}
