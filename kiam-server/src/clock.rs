//! The wall clock, as a value, so that a test can set it.

use std::fmt;
use std::time::SystemTime;

/// Says what time it is.
pub trait Clock: Send + Sync + 'static {
    /// The time of day. It may jump, in both directions.
    fn now(&self) -> SystemTime;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
