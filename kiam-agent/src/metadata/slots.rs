//! How many connections there may be, of all pods together and of each, and how many of a pod's are
//! answered at once. What is above that waits, in order, at its own pod's cost.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Open connections of all owners.
    pub(super) open: usize,
    /// Open connections of one owner.
    pub(super) open_per_owner: usize,
    /// Connections of one owner that are being answered.
    pub(super) answered_per_owner: usize,
}

/// The limit that a connection was closed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Its owner's.
    Owner,
    /// That of all owners.
    All,
}

/// Connections that are open, by their owner.
#[derive(Debug)]
pub(super) struct Slots<K: Eq + Hash> {
    limits: Limits,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    open: usize,
    /// The number of the next connection.
    next: u64,
    owners: HashMap<K, Owner>,
}

#[derive(Debug)]
struct Owner {
    open: usize,
    answered: Arc<Semaphore>,
    /// Connections that have not asked anything yet, the oldest first: they can be told to go.
    silent: BTreeMap<u64, Arc<Notify>>,
}

/// One open connection; dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Open<K: Eq + Hash> {
    owner: K,
    number: u64,
    has_asked: AtomicBool,
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

    /// Room for one more connection of this owner. Where there is none, a connection that has not asked
    /// anything goes: the oldest one of whoever has the most.
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
            silent: BTreeMap::new(),
        });
        own.open += 1;
        own.silent.insert(number, Arc::clone(&evicted));
        Ok(Open {
            owner,
            number,
            has_asked: AtomicBool::new(false),
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
            .and_then(|own| own.silent.pop_first());
        oldest.is_some_and(|(_, evicted)| {
            evicted.notify_one();
            true
        })
    }

    /// One of an owner that has at least as many as `own`.
    fn evict_of_the_fullest(&mut self, own: usize) -> bool {
        let can_go = |owner: &&mut Owner| owner.open >= own && !owner.silent.is_empty();
        let owners = self.owners.values_mut().filter(can_go);
        let oldest = owners
            .max_by_key(|owner| owner.open)
            .and_then(|owner| owner.silent.pop_first());
        oldest.is_some_and(|(_, evicted)| {
            evicted.notify_one();
            true
        })
    }
}

impl<K: Eq + Hash> Open<K> {
    /// It asks something: it stays until it is answered.
    pub(super) fn asks(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
        let mut state = self.slots.lock();
        if let Some(own) = state.owners.get_mut(&self.owner) {
            own.silent.remove(&self.number);
        }
    }

    pub(super) fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    /// Waits until it is told to go.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Leave to be answered, if there is some now.
    pub(super) fn try_answer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.answered).try_acquire_owned().ok()
    }

    /// Leave to be answered, after those of the same owner that asked before.
    pub(super) async fn answer(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(&self.answered).acquire_owned().await.ok()
    }
}

impl<K: Eq + Hash> Drop for Open<K> {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.open -= 1;
        if let Some(own) = state.owners.get_mut(&self.owner) {
            own.open -= 1;
            own.silent.remove(&self.number);
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

    fn asking(slots: &Arc<Slots<&'static str>>, owner: &'static str) -> Open<&'static str> {
        let open = slots.open(owner).unwrap();
        open.asks();
        open
    }

    #[test]
    fn one_owner_s_limit_is_not_another_s_and_nothing_is_kept() {
        let slots = Slots::new(LIMITS);
        let all: Vec<_> = (0..3).map(|_| asking(&slots, "a")).collect();
        assert_eq!(slots.open("a").unwrap_err(), Full::Owner);
        let other = slots.open("b").unwrap();
        drop(all);
        let again = slots.open("a").unwrap();
        drop((other, again));
        let state = slots.lock();
        assert!(state.owners.is_empty() && state.open == 0);
    }

    #[test]
    fn whoever_asks_nothing_goes_first_and_of_whoever_has_the_most() {
        let slots = Slots::new(LIMITS);
        let gone = |open: &Open<_>| open.evicted().now_or_never().is_some();
        // Its own oldest one that is silent.
        let asked = asking(&slots, "a");
        let (second, third) = (slots.open("a").unwrap(), slots.open("a").unwrap());
        let fourth = slots.open("a").unwrap();
        assert!(!gone(&asked) && gone(&second) && !gone(&third) && !gone(&fourth));
        drop(second);
        // Of another that has more.
        let others = ["b", "b", "c"].map(|owner| slots.open(owner).unwrap());
        let newest = slots.open("d").unwrap();
        assert!(gone(&third) && !gone(&fourth) && !others.iter().any(gone));
        drop((third, fourth, newest));
        // Who has the most has asked: then no other makes room for it.
        let more: Vec<_> = (0..2).map(|_| asking(&slots, "a")).collect();
        assert_eq!(slots.lock().open, LIMITS.open);
        assert_eq!(slots.open("a").unwrap_err(), Full::Owner);
        others.iter().for_each(Open::asks);
        assert_eq!(slots.open("d").unwrap_err(), Full::All);
        drop((asked, more));
    }

    #[test]
    fn those_of_one_owner_are_answered_in_order() {
        let slots = Slots::new(LIMITS);
        let [first, second, third] = [0, 1, 2].map(|_| asking(&slots, "a"));
        let leave = first.try_answer().unwrap();
        assert!(second.try_answer().is_none());
        let (mut second, mut third) = (Box::pin(second.answer()), Box::pin(third.answer()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        // Another's are not behind them.
        assert!(asking(&slots, "b").try_answer().is_some());
        drop(leave);
        assert!(third.as_mut().now_or_never().is_none());
        let leave = second.now_or_never().unwrap();
        assert!(leave.is_some());
        drop(leave);
        assert!(third.now_or_never().unwrap().is_some());
    }
}
