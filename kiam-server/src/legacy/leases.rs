//! Leases of the identities that agents of kiam v4 ask for. These agents have no stream that could
//! hold the leases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::credentials::{Lease, Snapshot, Store};
use crate::identity::Identity;

/// Leases of identities, each of which ends some time after the last request.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Arc<Store>,
    /// The time from the last request to the end of the lease.
    ttl: Duration,
    leases: Arc<Mutex<HashMap<Arc<Identity>, TimedLease>>>,
}

#[derive(Debug)]
struct TimedLease {
    _lease: Lease,
    /// Ends the lease. Replaced with every request.
    _timer: AbortOnDropHandle<()>,
}

impl Leases {
    /// Ends a lease `ttl` after the last request. An SDK asks again within the duration of a
    /// session.
    pub(crate) fn new(store: Arc<Store>, ttl: Duration) -> Self {
        Self {
            store,
            ttl,
            leases: Arc::default(),
        }
    }

    /// Returns the credentials of an identity, or the failure to get them. Waits for the first
    /// result if there is none yet. Dropping the future ends the wait, and not the call to STS.
    pub(crate) async fn get(&self, identity: &Arc<Identity>) -> Snapshot {
        let signal = Arc::new(Notify::new());
        let lease = self.store.lease(identity, Arc::clone(&signal));
        self.extend(identity);
        loop {
            let snapshot = lease.snapshot();
            if snapshot.version > 0 {
                return snapshot;
            }
            signal.notified().await;
        }
    }

    fn extend(&self, identity: &Arc<Identity>) {
        let leases = Arc::downgrade(&self.leases);
        let timer = tokio::spawn(expire(Arc::clone(identity), self.ttl, leases));
        let lease = TimedLease {
            _lease: self.store.lease(identity, Arc::new(Notify::new())),
            _timer: AbortOnDropHandle::new(timer),
        };
        // Bound to a name, so that the previous lease is dropped outside of the lock.
        let _previous = lock(&self.leases).insert(Arc::clone(identity), lease);
    }
}

async fn expire(
    identity: Arc<Identity>,
    ttl: Duration,
    leases: Weak<Mutex<HashMap<Arc<Identity>, TimedLease>>>,
) {
    tokio::time::sleep(ttl).await;
    if let Some(leases) = leases.upgrade() {
        let lease = lock(&leases).remove(&identity);
        drop(lease);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
