//! The credentials of one identity, and the loop that refreshes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use kiam_common::credentials::SessionCredentials;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::issuing::Shared;
use super::schedule::Retries;
use super::{IssueError, IssueErrorKind};
use crate::cluster::Signal;
use crate::identity::Identity;

/// The time that an entry without readers is kept, for agents that reconnect and pods that are
/// replaced.
const LINGER: Duration = Duration::from_secs(60);
/// The longest sleep without a look at the wall clock, which may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// New credentials with a shorter lifetime count as expired.
const SHORTEST_LIFE: Duration = Duration::from_secs(5);

/// The failure of the last call for an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub error: IssueError,
    /// The time of the next attempt.
    pub retry_at: SystemTime,
}

/// The state of an identity at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Incremented with every change; zero before the first result.
    pub version: u64,
    /// The newest credentials. They may have expired, if renewals keep failing.
    pub credentials: Option<Arc<SessionCredentials>>,
    /// The failure of the last call, if it failed.
    pub failure: Option<Arc<Failure>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) identity: Arc<Identity>,
    state: Mutex<Snapshot>,
    readers: watch::Sender<Vec<Signal>>,
}

/// An entry and its refresh task, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) entry: Arc<Entry>,
    pub(super) _task: AbortOnDropHandle<()>,
}

impl Entry {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            state: Mutex::default(),
            readers: watch::Sender::default(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    pub(super) fn add_reader(&self, signal: Signal) {
        self.readers.send_modify(|readers| readers.push(signal));
    }

    pub(super) fn remove_reader(&self, signal: &Signal) {
        self.readers.send_modify(|readers| {
            if let Some(at) = readers
                .iter()
                .position(|reader| Arc::ptr_eq(reader, signal))
            {
                readers.swap_remove(at);
            }
        });
    }

    pub(super) fn is_unread(&self) -> bool {
        self.readers.borrow().is_empty()
    }

    /// Returns the remaining lifetime of the credentials in use.
    fn remaining(&self, now: SystemTime) -> Duration {
        let credentials = self.lock().credentials.clone();
        credentials.map_or(Duration::ZERO, |credentials| credentials.remaining(now))
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        {
            let mut state = self.lock();
            change(&mut state);
            state.version += 1;
        }
        for reader in self.readers.borrow().iter() {
            reader.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the entry has had no reader for [`LINGER`].
    async fn abandoned(&self) {
        let mut readers = self.readers.subscribe();
        loop {
            // Cannot fail: `self` holds the sender.
            let _ = readers.wait_for(Vec::is_empty).await;
            let returned = readers.wait_for(|readers| !readers.is_empty());
            if tokio::time::timeout(LINGER, returned).await.is_err() {
                return;
            }
        }
    }
}

/// Refreshes an entry until it has no readers, then removes it.
pub(super) async fn run(
    entry: Arc<Entry>,
    shared: Arc<Shared>,
    entries: Weak<Mutex<HashMap<Arc<Identity>, Held>>>,
) {
    let refreshing = refresh(&entry, &shared);
    tokio::pin!(refreshing);
    loop {
        tokio::select! {
            () = &mut refreshing => {}
            () = entry.abandoned() => {}
        }
        let Some(entries) = entries.upgrade() else {
            return;
        };
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Readers are added under this lock, so that a new reader keeps the entry.
        if entry.is_unread() {
            entries.remove(&entry.identity);
            shared
                .metrics
                .entries
                .set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
            return;
        }
    }
}

async fn refresh(entry: &Entry, shared: &Arc<Shared>) {
    let mut retries = Retries::new();
    loop {
        let outcome = shared.issue(&entry.identity).await;
        let now = shared.clock.now();
        let random = (shared.random)();
        let next = match outcome.and_then(|credentials| usable(credentials, now)) {
            Ok(credentials) => {
                retries.after_success();
                let next = shared
                    .contract
                    .renew_at(now, credentials.expiration, random);
                tracing::info!(
                    credentials.role = %entry.identity.role,
                    credentials.session_name = entry.identity.session_name,
                    credentials.access.key = credentials.access_key_id,
                    credentials.expiration = %timestamp(credentials.expiration),
                    "issued credentials"
                );
                entry.update(|state| {
                    state.credentials = Some(Arc::new(credentials));
                    state.failure = None;
                });
                next
            }
            Err(error) => {
                let remaining = entry.remaining(now);
                let wait = retries.after_failure(error.kind, remaining, random);
                shared.metrics.errors.inc();
                shared
                    .metrics
                    .errors_by_kind
                    .with_label_values(&[error.kind.as_label()])
                    .inc();
                tracing::warn!(
                    credentials.role = %entry.identity.role,
                    credentials.session_name = entry.identity.session_name,
                    kind = %error.kind,
                    retry_seconds = wait.as_secs_f64(),
                    "cannot get credentials: {error}"
                );
                let retry_at = now + wait;
                entry.update(|state| state.failure = Some(Arc::new(Failure { error, retry_at })));
                retry_at
            }
        };
        sleep_until(shared, next, now).await;
    }
}

/// Sleeps until a time of the wall clock. Setting that clock back does not prolong the sleep.
async fn sleep_until(shared: &Shared, at: SystemTime, from: SystemTime) {
    let longest = tokio::time::Instant::now() + at.duration_since(from).unwrap_or_default();
    loop {
        let left = at.duration_since(shared.clock.now()).unwrap_or_default();
        if left.is_zero() || tokio::time::Instant::now() >= longest {
            return;
        }
        let until = tokio::time::Instant::now() + left.min(LONGEST_SLEEP);
        tokio::time::sleep_until(until.min(longest)).await;
    }
}

/// Rejects credentials that are expired or incomplete: they must not replace valid ones.
fn usable(
    credentials: SessionCredentials,
    now: SystemTime,
) -> Result<SessionCredentials, IssueError> {
    let fault = |message: String| {
        Err(IssueError {
            kind: IssueErrorKind::Fault,
            message,
        })
    };
    if credentials.access_key_id.is_empty()
        || credentials.secret_access_key.expose().is_empty()
        || credentials.session_token.expose().is_empty()
    {
        return fault("STS returned incomplete credentials".to_owned());
    }
    if credentials.remaining(now) < SHORTEST_LIFE {
        return fault(format!(
            "STS returned credentials that expire at {}; check the clock of this machine",
            timestamp(credentials.expiration)
        ));
    }
    Ok(credentials)
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map_or_else(|_| "an invalid time".to_owned(), |time| time.to_string())
}
