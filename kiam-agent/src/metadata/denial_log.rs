//! Log messages about denied requests: one per pod and reason in an interval. Clients that repeat
//! requests, as SDKs and hostile pods do, cannot fill the disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::caller::PodRef;

/// Interval in which a message is not repeated.
const QUIET: Duration = Duration::from_secs(30);
/// Maximum number of remembered messages. Beyond it, within [`QUIET`], no others are logged.
const MAX_REMEMBERED: usize = 1024;

/// Messages that were logged lately.
#[derive(Debug, Default)]
pub(super) struct DenialLog {
    entries: Mutex<HashMap<(Option<PodRef>, &'static str), Entry>>,
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    /// Number of messages that were suppressed since.
    held_back: u64,
}

impl DenialLog {
    /// Returns whether to log a message now: the number of equal ones that were suppressed before,
    /// or `None`.
    pub(super) fn should_log(
        &self,
        who: Option<&PodRef>,
        reason: &'static str,
        now: Instant,
    ) -> Option<u64> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (who.cloned(), reason);
        if let Some(entry) = entries.get_mut(&key) {
            if now.duration_since(entry.at) < QUIET {
                entry.held_back += 1;
                return None;
            }
            entry.at = now;
            return Some(std::mem::take(&mut entry.held_back));
        }
        if entries.len() >= MAX_REMEMBERED {
            entries.retain(|_, entry| now.duration_since(entry.at) < QUIET);
        }
        if entries.len() >= MAX_REMEMBERED {
            return None;
        }
        let held_back = 0;
        entries.insert(key, Entry { at: now, held_back });
        Some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::pod;

    #[test]
    fn a_message_is_logged_once_per_interval_with_the_number_suppressed() {
        let (log, begin) = (DenialLog::default(), Instant::now());
        let (one, two) = (pod(1), pod(2));
        let at = |millis| begin + Duration::from_millis(millis);
        for (who, reason, millis, expected) in [
            (Some(&one), "no_role", 0, Some(0)),
            (Some(&one), "no_role", 1, None),
            (Some(&one), "no_role", 29_999, None),
            // Other pods and other reasons are logged.
            (Some(&two), "no_role", 29_999, Some(0)),
            (Some(&one), "forbidden", 29_999, Some(0)),
            (None, "no_role", 29_999, Some(0)),
            (Some(&one), "no_role", 30_000, Some(2)),
            (Some(&one), "no_role", 60_000, Some(0)),
        ] {
            assert_eq!(
                log.should_log(who, reason, at(millis)),
                expected,
                "{millis}"
            );
        }
    }

    #[test]
    fn memory_is_bounded_and_entries_expire() {
        let (log, begin) = (DenialLog::default(), Instant::now());
        let log_one = |n: usize, at| {
            let who = PodRef::Uid(kiam_common::pod_uid::PodUid::new(&n.to_string()));
            log.should_log(Some(&who), "no_role", at)
        };
        let logged = (0..2 * MAX_REMEMBERED).filter(|n| log_one(*n, begin).is_some());
        assert_eq!(logged.count(), MAX_REMEMBERED);
        assert_eq!(log_one(2 * MAX_REMEMBERED, begin + QUIET), Some(0));
        assert_eq!(log.entries.lock().unwrap().len(), 1);
    }
}
