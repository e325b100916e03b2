//! Identities that agents of kiam v4 have asked for: they have no stream that would hold them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::credentials::{Lease, Snapshot, Store};
use crate::identity::Identity;

/// Holds an identity as long as somebody asks for it.
#[derive(Debug)]
pub struct Holds {
    store: Arc<Store>,
    /// From the last question to letting go.
    keep: Duration,
    held: Arc<Mutex<HashMap<Arc<Identity>, Hold>>>,
}

#[derive(Debug)]
struct Hold {
    _lease: Lease,
    /// Begins anew with every question.
    _end: AbortOnDropHandle<()>,
}

impl Holds {
    /// Lets go of an identity that nobody has asked for so long. An SDK asks again within a
    /// session's duration.
    #[must_use]
    pub fn new(store: Arc<Store>, keep: Duration) -> Self {
        Self {
            store,
            keep,
            held: Arc::default(),
        }
    }

    /// The identity's credentials, or why there are none: what is known, else what comes first.
    /// Dropping the future gives up the wait, and not the call to STS.
    pub async fn ask(&self, identity: &Arc<Identity>) -> Snapshot {
        let signal = Arc::new(Notify::new());
        let lease = self.store.lease(identity, Arc::clone(&signal));
        self.hold(identity);
        loop {
            let snapshot = lease.snapshot();
            if snapshot.version > 0 {
                return snapshot;
            }
            signal.notified().await;
        }
    }

    /// How many identities are held.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.held).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hold(&self, identity: &Arc<Identity>) {
        let (keep, held) = (self.keep, Arc::downgrade(&self.held));
        let end = tokio::spawn(let_go(Arc::clone(identity), keep, held));
        let hold = Hold {
            _lease: self.store.lease(identity, Arc::new(Notify::new())),
            _end: AbortOnDropHandle::new(end),
        };
        // What was held until now is let go of outside of the lock.
        let _before = lock(&self.held).insert(Arc::clone(identity), hold);
    }
}

async fn let_go(
    identity: Arc<Identity>,
    keep: Duration,
    held: Weak<Mutex<HashMap<Arc<Identity>, Hold>>>,
) {
    tokio::time::sleep(keep).await;
    if let Some(held) = held.upgrade() {
        let hold = lock(&held).remove(&identity);
        drop(hold);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
