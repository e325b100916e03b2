//! All identities' entries: who shares which, and how much AWS is asked at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::entry::{Entry, Held, keep};
use super::issuing::Shared;
use super::{ExpiryContract, Issuer, Snapshot, StoreMetrics};
use crate::clock::Clock;
use crate::cluster::Signal;
use crate::identity::Identity;

/// How much AWS is asked at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls under way.
    pub concurrency: usize,
    /// Calls begun, each second.
    pub per_second: f64,
}

/// Credentials by identity.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    entries: Arc<Mutex<HashMap<Arc<Identity>, Held>>>,
}

/// A reader's hold on an identity's credentials.
#[derive(Debug)]
pub struct Lease {
    entry: Arc<Entry>,
    signal: Signal,
}

impl Store {
    /// Empty. `random` gives numbers in 0..1 for jitter.
    #[must_use]
    pub fn new(
        issuer: Arc<dyn Issuer>,
        clock: Arc<dyn Clock>,
        random: fn() -> f64,
        contract: ExpiryContract,
        limits: Limits,
        metrics: StoreMetrics,
    ) -> Self {
        let shared = Shared {
            issuer,
            clock,
            random,
            contract,
            metrics,
            places: Semaphore::new(limits.concurrency.max(1)),
            interval: Duration::from_secs_f64(1.0 / limits.per_second.max(0.1)),
            next_call: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            entries: Arc::default(),
        }
    }

    /// Holds an identity's credentials, and has `signal` woken at every change of them. The first
    /// to hold one has it fetched.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn lease(&self, identity: &Arc<Identity>, signal: Signal) -> Lease {
        let mut entries = lock(&self.entries);
        let entry = if let Some(held) = entries.get(identity) {
            self.shared.metrics.hits.inc();
            held.entry.add_reader(Arc::clone(&signal));
            Arc::clone(&held.entry)
        } else {
            self.shared.metrics.misses.inc();
            let entry = Arc::new(Entry::new(Arc::clone(identity)));
            entry.add_reader(Arc::clone(&signal));
            let (shared, all) = (Arc::clone(&self.shared), Arc::downgrade(&self.entries));
            let task = tokio::spawn(keep(Arc::clone(&entry), shared, all));
            let held = Held {
                entry: Arc::clone(&entry),
                _task: AbortOnDropHandle::new(task),
            };
            entries.insert(Arc::clone(identity), held);
            entry
        };
        self.shared
            .metrics
            .entries
            .set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
        Lease { entry, signal }
    }

    /// How many identities are held.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Every identity that is held, and its state now.
    #[must_use]
    pub fn snapshots(&self) -> Vec<(Arc<Identity>, Snapshot)> {
        let entries: Vec<_> = lock(&self.entries)
            .values()
            .map(|held| Arc::clone(&held.entry))
            .collect();
        entries
            .iter()
            .map(|entry| (Arc::clone(&entry.identity), entry.snapshot()))
            .collect()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Lease {
    /// The identity, as it is shared by all who hold it.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.entry.identity
    }

    /// The identity's state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.entry.snapshot()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.entry.remove_reader(&self.signal);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
