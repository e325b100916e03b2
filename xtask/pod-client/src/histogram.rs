//! Histogram of durations: a bucket is at most 1/64 of its lower bound wide, and the
//! counts of two processes can be added.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets in each power of two.
const PARTS: u64 = 64;

/// Durations, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        *self.0.entry(floor(nanos)).or_default() += 1;
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (&bucket, &count) in &other.0 {
            *self.0.entry(bucket).or_default() += count;
        }
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns a quantile in microseconds; NaN without durations.
    pub fn quantile(&self, part: f64) -> f64 {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (&bucket, &count) in &self.0 {
            seen += count;
            if seen >= wanted {
                return bucket as f64 / 1e3;
            }
        }
        f64::NAN
    }
}

/// The begin of a bucket.
const fn floor(nanos: u64) -> u64 {
    let log = match nanos.checked_ilog2() {
        Some(log) if 1 << log >= PARTS => log,
        _ => return nanos,
    };
    let step = (1 << log) / PARTS;
    nanos / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_and_add_up() {
        let (mut odd, mut even) = (Histogram::default(), Histogram::default());
        for micros in 1..=1000 {
            let of = if micros % 2 == 0 { &mut even } else { &mut odd };
            of.add(Duration::from_micros(micros));
        }
        odd.merge(&even);
        assert_eq!(odd.count(), 1000);
        for (part, micros) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0), (0.0, 1.0)] {
            let found = odd.quantile(part);
            assert!(
                found <= micros && found > micros * (1.0 - 1.0 / 32.0),
                "{found}"
            );
        }
        assert!(Histogram::default().quantile(0.5).is_nan());
    }
}
