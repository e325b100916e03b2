//! The limit of all waits.

use std::time::Duration;

use testbed::sandbox::patient;

/// A limit that only ends a hang.
pub(crate) fn hang_limit() -> Duration {
    patient(Duration::from_secs(60))
}
