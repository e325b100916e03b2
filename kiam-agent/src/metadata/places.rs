//! How many connections there may be: of all pods together, and of each.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that are open, by caller.
#[derive(Debug)]
pub(super) struct Places<K: Eq + Hash> {
    limit: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash> {
    of: K,
    places: Arc<Places<K>>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: Mutex::default(),
        })
    }

    /// A place for one more connection of this caller, if it may have one.
    pub(super) fn take(self: &Arc<Self>, of: K) -> Option<Place<K>> {
        let mut taken = self.lock();
        let count = taken.entry(of.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place {
            of,
            places: Arc::clone(self),
        })
    }
}

impl<K: Eq + Hash> Places<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_s_limit_is_not_another_s_and_nothing_is_kept() {
        let places = Places::new(2);
        let first = places.take("a");
        let second = places.take("a");
        assert!(first.is_some() && second.is_some());
        assert!(places.take("a").is_none());
        assert!(places.take("b").is_some());
        drop(first);
        let third = places.take("a");
        assert!(third.is_some());
        drop((second, third));
        assert!(places.lock().is_empty());
    }
}
