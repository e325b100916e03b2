//! The entries of all identities, shared by their readers, and the limits of calls to AWS.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::entry::{self, Entry, Held};
use super::issuing::Shared;
use super::{ExpiryContract, Issuer, Snapshot, StoreMetrics};
use crate::clock::Clock;
use crate::cluster::Signal;
use crate::identity::Identity;

/// Limits of calls to AWS.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Concurrent calls.
    pub concurrency: usize,
    /// Calls started per second.
    pub per_second: f64,
}

/// Credentials by identity.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    entries: Arc<Mutex<HashMap<Arc<Identity>, Held>>>,
}

/// A lease of the credentials of an identity: they are refreshed while it exists.
#[derive(Debug)]
pub struct Lease {
    entry: Arc<Entry>,
    signal: Signal,
}

impl Store {
    /// An empty store. `random` returns numbers in 0..1 for jitter.
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
            permits: Semaphore::new(limits.concurrency.max(1)),
            interval: Duration::from_secs_f64(1.0 / limits.per_second.max(0.1)),
            next_call: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            entries: Arc::default(),
        }
    }

    /// Leases the credentials of an identity, and wakes `signal` at every change of them. The first
    /// lease starts the first call to AWS.
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
            let task = tokio::spawn(entry::run(Arc::clone(&entry), shared, all));
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

    /// Returns the number of identities.
    pub fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Returns all identities and their current states.
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

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Lease {
    /// Returns the identity, shared by all leases of it.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.entry.identity
    }

    /// Returns the current state of the identity.
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
