//! The wall clock, as a trait, so that tests can set it.

use std::fmt;
use std::time::SystemTime;

/// A wall clock.
pub trait Clock: Send + Sync + 'static {
    /// Returns the time, which may jump in both directions.
    fn now(&self) -> SystemTime;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
