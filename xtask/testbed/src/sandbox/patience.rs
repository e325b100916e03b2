//! Factor for all time limits: an emulated processor has a tenth of the usual speed.

use std::sync::OnceLock;
use std::time::Duration;

/// Environment variable with the factor for time limits.
pub const PATIENCE: &str = "KIAM_TEST_PATIENCE";
/// Largest factor: a limit must remain a limit.
const MOST: u32 = 100;

/// Multiplies a limit by the factor in [`PATIENCE`], which is 1 by default.
pub fn patient(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| times(std::env::var(PATIENCE).ok().as_deref()));
    limit * *times
}

fn times(value: Option<&str>) -> u32 {
    let times = value.and_then(|times| times.parse().ok());
    times.unwrap_or(1).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_stay_limits_for_any_value() {
        for (value, expected) in [
            (None, 1),
            (Some("10"), 10),
            (Some("0"), 1),
            (Some("-1"), 1),
            (Some("4000000000"), MOST),
            (Some("long"), 1),
        ] {
            assert_eq!(times(value), expected, "{value:?}");
        }
    }
}
