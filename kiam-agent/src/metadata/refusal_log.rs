//! Refusals in the log: one line for a pod and a reason in a while. A client that asks again and
//! again, as SDKs do and hostile pods would, fills no disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::caller::PodRef;

/// How long the same is not said again.
const QUIET: Duration = Duration::from_secs(30);
/// Pods and reasons that are remembered; with more of them within [`QUIET`] nothing is said of the rest.
const MAX_REMEMBERED: usize = 1024;

/// What has been said lately.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    said: Mutex<HashMap<(Option<PodRef>, &'static str), Said>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often it was not said again since.
    held_back: u64,
}

impl RefusalLog {
    /// Whether a refusal is to be logged now, and of how many like it nothing was logged before.
    pub(super) fn may_say(
        &self,
        who: Option<&PodRef>,
        reason: &'static str,
        now: Instant,
    ) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (who.cloned(), reason);
        if let Some(said) = said.get_mut(&key) {
            if now.duration_since(said.at) < QUIET {
                said.held_back += 1;
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.held_back));
        }
        if said.len() >= MAX_REMEMBERED {
            said.retain(|_, said| now.duration_since(said.at) < QUIET);
        }
        if said.len() >= MAX_REMEMBERED {
            return None;
        }
        let held_back = 0;
        said.insert(key, Said { at: now, held_back });
        Some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::pod;

    #[test]
    fn the_same_is_said_once_in_a_while_with_how_often_it_was_not() {
        let (log, begin) = (RefusalLog::default(), Instant::now());
        let (one, two) = (pod(1), pod(2));
        let at = |millis| begin + Duration::from_millis(millis);
        for (who, reason, millis, expected) in [
            (Some(&one), "no_role", 0, Some(0)),
            (Some(&one), "no_role", 1, None),
            (Some(&one), "no_role", 29_999, None),
            // Others, and other reasons, are news.
            (Some(&two), "no_role", 29_999, Some(0)),
            (Some(&one), "forbidden", 29_999, Some(0)),
            (None, "no_role", 29_999, Some(0)),
            (Some(&one), "no_role", 30_000, Some(2)),
            (Some(&one), "no_role", 60_000, Some(0)),
        ] {
            assert_eq!(log.may_say(who, reason, at(millis)), expected, "{millis}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let (log, begin) = (RefusalLog::default(), Instant::now());
        let say = |n: usize, at| {
            let who = PodRef::Uid(crate::caller::PodUid::new(&n.to_string()));
            log.may_say(Some(&who), "no_role", at)
        };
        let said = (0..2 * MAX_REMEMBERED).filter(|n| say(*n, begin).is_some());
        assert_eq!(said.count(), MAX_REMEMBERED);
        assert_eq!(say(2 * MAX_REMEMBERED, begin + QUIET), Some(0));
        assert_eq!(log.said.lock().unwrap().len(), 1);
    }
}
