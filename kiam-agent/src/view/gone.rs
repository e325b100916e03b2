//! Pods that a server removed: a request from the rest of one gets an answer that says so. Pods
//! that are merely missing from a later stream are unknown.

use std::collections::VecDeque;

use kiam_common::pod_uid::PodUid;

/// Maximum number of remembered pods; the oldest are forgotten.
const MAX_GONE: usize = 256;

/// The pods that were removed last, and their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Gone(VecDeque<(PodUid, Box<str>)>);

impl Gone {
    pub(super) fn name(&self, uid: &str) -> Option<&str> {
        let found = self.0.iter().find(|(gone, _)| gone.as_str() == uid);
        found.map(|(_, name)| &**name)
    }

    pub(super) fn add(&mut self, uid: PodUid, name: &str) {
        self.remove(uid.as_str());
        if self.0.len() >= MAX_GONE {
            self.0.pop_front();
        }
        self.0.push_back((uid, name.into()));
    }

    pub(super) fn remove(&mut self, uid: &str) {
        self.0.retain(|(gone, _)| gone.as_str() != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_removed_pods_are_remembered() {
        let mut gone = Gone::default();
        for n in 0..=MAX_GONE {
            gone.add(PodUid::from(n.to_string().as_str()), "default/web");
        }
        assert_eq!((gone.name("0"), gone.0.len()), (None, MAX_GONE));
        assert_eq!(gone.name("1"), Some("default/web"));
        gone.remove("1");
        assert_eq!(gone.name("1"), None);
    }
}
