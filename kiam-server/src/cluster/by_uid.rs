//! Sets of pods keyed by UID: each entry is one pointer, without a separate key.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::object::Pod;

/// A pod that compares by its UID, so that `replace` updates the pod in a set.
#[derive(Debug)]
pub(super) struct ByUid(pub(super) Arc<Pod>);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        self.0.uid.as_str()
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

// `Borrow` requires the hash of the borrowed text.
impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uid.hash(state);
    }
}

impl Ord for ByUid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.uid.cmp(&other.0.uid)
    }
}

impl PartialOrd for ByUid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
