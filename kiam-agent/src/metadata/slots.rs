//! Limits of connections: in total, per owner, and of those handled at once per owner. Requests
//! above the last limit wait in order, behind others of the same owner only.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Maximum numbers of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Open connections of all owners.
    pub(super) open: usize,
    /// Open connections of one owner.
    pub(super) open_per_owner: usize,
    /// Connections of one owner that are handled at once.
    pub(super) answered_per_owner: usize,
}

/// The limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// That of the owner.
    Owner,
    /// That of all owners.
    All,
}

/// Open connections, by owner.
#[derive(Debug)]
pub(super) struct Slots<K: Eq + Hash> {
    limits: Limits,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    open: usize,
    /// Number of the next connection.
    next: u64,
    owners: HashMap<K, Owner>,
}

#[derive(Debug)]
struct Owner {
    open: usize,
    answered: Arc<Semaphore>,
    /// Connections without a request, the oldest first: these can be evicted.
    idle: BTreeMap<u64, Arc<Notify>>,
}

/// The slot of an open connection, freed when this is dropped.
#[derive(Debug)]
pub(super) struct Open<K: Eq + Hash> {
    owner: K,
    number: u64,
    active: AtomicBool,
    evicted: Arc<Notify>,
    answered: Arc<Semaphore>,
    slots: Arc<Slots<K>>,
}

impl<K: Eq + Hash + Clone> Slots<K> {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            open: 0,
            next: 0,
            owners: HashMap::new(),
        };
        Arc::new(Self {
            limits,
            state: Mutex::new(state),
        })
    }

    /// Takes a slot for a connection of this owner. If none is free, an idle connection is evicted:
    /// the oldest one of the owner with the most connections.
    pub(super) fn open(self: &Arc<Self>, owner: K) -> Result<Open<K>, Full> {
        let mut state = self.lock();
        let own = state.owners.get(&owner).map_or(0, |own| own.open);
        if own >= self.limits.open_per_owner && !state.evict_of(&owner) {
            return Err(Full::Owner);
        }
        if state.open >= self.limits.open && !state.evict_of_the_fullest(own) {
            return Err(Full::All);
        }
        let number = state.next;
        state.next += 1;
        state.open += 1;
        let evicted = Arc::new(Notify::new());
        let own = state.owners.entry(owner.clone()).or_insert_with(|| Owner {
            open: 0,
            answered: Arc::new(Semaphore::new(self.limits.answered_per_owner)),
            idle: BTreeMap::new(),
        });
        own.open += 1;
        own.idle.insert(number, Arc::clone(&evicted));
        Ok(Open {
            owner,
            number,
            active: AtomicBool::new(false),
            evicted,
            answered: Arc::clone(&own.answered),
            slots: Arc::clone(self),
        })
    }
}

impl<K: Eq + Hash> Slots<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn evict_of(&mut self, owner: &K) -> bool {
        let oldest = self
            .owners
            .get_mut(owner)
            .and_then(|own| own.idle.pop_first());
        oldest.is_some_and(|(_, evicted)| {
            evicted.notify_one();
            true
        })
    }

    /// Evicts an idle connection of an owner with at least `own` connections.
    fn evict_of_the_fullest(&mut self, own: usize) -> bool {
        let can_go = |owner: &&mut Owner| owner.open >= own && !owner.idle.is_empty();
        let owners = self.owners.values_mut().filter(can_go);
        let oldest = owners
            .max_by_key(|owner| owner.open)
            .and_then(|owner| owner.idle.pop_first());
        oldest.is_some_and(|(_, evicted)| {
            evicted.notify_one();
            true
        })
    }
}

impl<K: Eq + Hash> Open<K> {
    /// Records that the connection has sent a request, and can no longer be evicted.
    pub(super) fn mark_active(&self) {
        self.active.store(true, Ordering::Relaxed);
        let mut state = self.slots.lock();
        if let Some(own) = state.owners.get_mut(&self.owner) {
            own.idle.remove(&self.number);
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Takes a permit to be handled, if one is free.
    pub(super) fn try_answer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.answered).try_acquire_owned().ok()
    }

    /// Waits for a permit to be handled, after earlier requests of the same owner.
    pub(super) async fn answer(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.answered).acquire_owned().await.ok()
    }
}

impl<K: Eq + Hash> Drop for Open<K> {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.open -= 1;
        if let Some(own) = state.owners.get_mut(&self.owner) {
            own.open -= 1;
            own.idle.remove(&self.number);
            if own.open == 0 {
                state.owners.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LIMITS: Limits = Limits {
        open: 6,
        open_per_owner: 3,
        answered_per_owner: 1,
    };

    fn active(slots: &Arc<Slots<&'static str>>, owner: &'static str) -> Open<&'static str> {
        let open = slots.open(owner).unwrap();
        open.mark_active();
        open
    }

    #[test]
    fn owners_have_separate_limits_and_leave_nothing_behind() {
        let slots = Slots::new(LIMITS);
        let all: Vec<_> = (0..3).map(|_| active(&slots, "a")).collect();
        assert_eq!(slots.open("a").unwrap_err(), Full::Owner);
        let other = slots.open("b").unwrap();
        drop(all);
        let again = slots.open("a").unwrap();
        drop((other, again));
        let state = slots.lock();
        assert!(state.owners.is_empty() && state.open == 0);
    }

    #[test]
    fn idle_connections_of_the_fullest_owner_are_evicted_first() {
        let slots = Slots::new(LIMITS);
        let gone = |open: &Open<_>| open.evicted().now_or_never().is_some();
        // The oldest idle connection of the same owner.
        let asked = active(&slots, "a");
        let (second, third) = (slots.open("a").unwrap(), slots.open("a").unwrap());
        let fourth = slots.open("a").unwrap();
        assert!(!gone(&asked) && gone(&second) && !gone(&third) && !gone(&fourth));
        drop(second);
        // An idle connection of another owner with more connections.
        let others = ["b", "b", "c"].map(|owner| slots.open(owner).unwrap());
        let newest = slots.open("d").unwrap();
        assert!(gone(&third) && !gone(&fourth) && !others.iter().any(gone));
        drop((third, fourth, newest));
        // The fullest owner has no idle connection, and the others have fewer: none is evicted.
        let more: Vec<_> = (0..2).map(|_| active(&slots, "a")).collect();
        assert_eq!(slots.lock().open, LIMITS.open);
        assert_eq!(slots.open("a").unwrap_err(), Full::Owner);
        others.iter().for_each(Open::mark_active);
        assert_eq!(slots.open("d").unwrap_err(), Full::All);
        drop((asked, more));
    }

    #[test]
    fn requests_of_one_owner_are_handled_in_order() {
        let slots = Slots::new(LIMITS);
        let [first, second, third] = [0, 1, 2].map(|_| active(&slots, "a"));
        let permit = first.try_answer().unwrap();
        assert!(second.try_answer().is_none());
        let (mut second, mut third) = (Box::pin(second.answer()), Box::pin(third.answer()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        // Those of another owner do not wait.
        assert!(active(&slots, "b").try_answer().is_some());
        drop(permit);
        assert!(third.as_mut().now_or_never().is_none());
        let permit = second.now_or_never().unwrap();
        assert!(permit.is_some());
        drop(permit);
        assert!(third.now_or_never().unwrap().is_some());
    }
}
