//! Pods that a server said have gone: what is left of one may still ask, and is told so. Of a pod that
//! a later server does not speak of, it is not known.

use std::collections::VecDeque;

use super::update::Uid;

/// How many are remembered; the longest gone are forgotten.
const MAX_GONE: usize = 256;

/// The pods that have gone last, and their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Gone(VecDeque<(Uid, Box<str>)>);

impl Gone {
    pub(super) fn name(&self, uid: &str) -> Option<&str> {
        let found = self.0.iter().find(|(gone, _)| gone.as_str() == uid);
        found.map(|(_, name)| &**name)
    }

    pub(super) fn add(&mut self, uid: Uid, name: &str) {
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
    fn those_that_have_gone_last_are_remembered() {
        let mut gone = Gone::default();
        for n in 0..=MAX_GONE {
            gone.add(Uid::from(n.to_string().as_str()), "default/web");
        }
        assert_eq!((gone.name("0"), gone.0.len()), (None, MAX_GONE));
        assert_eq!(gone.name("1"), Some("default/web"));
        gone.remove("1");
        assert_eq!(gone.name("1"), None);
    }
}
