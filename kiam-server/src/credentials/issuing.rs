//! Rate-limited calls to AWS, and the state that all entries share.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiam_common::credentials::SessionCredentials;
use prometheus::IntGauge;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{ExpiryContract, IssueError, IssueErrorKind, Issuer, StoreMetrics};
use crate::clock::Clock;
use crate::identity::Identity;

/// The limit for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The state that all entries share.
pub(super) struct Shared {
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: fn() -> f64,
    pub(super) contract: ExpiryContract,
    pub(super) metrics: StoreMetrics,
    pub(super) permits: Semaphore,
    pub(super) interval: Duration,
    pub(super) next_call: Mutex<Option<Instant>>,
}

impl Shared {
    /// Calls AWS once the concurrency and rate limits allow it.
    pub(super) async fn issue(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
    ) -> Result<SessionCredentials, IssueError> {
        let _permit = self.permits.acquire().await;
        tokio::time::sleep_until(self.next_turn()).await;
        let _counted = InFlight::of(&self.metrics.current);
        let start = Instant::now();
        let (issuer, subject) = (Arc::clone(&self.issuer), Arc::clone(identity));
        // A separate task: a panic in the SDK fails this call and does not end the entry.
        let call =
            AbortOnDropHandle::new(tokio::spawn(async move { issuer.issue(&subject).await }));
        let outcome = tokio::time::timeout(CALL_TIMEOUT, call).await;
        self.metrics.timing.observe(start.elapsed().as_secs_f64());
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => Err(IssueError {
                kind: IssueErrorKind::Fault,
                message: "the call to STS panicked in the server; see its standard error"
                    .to_owned(),
            }),
            Err(_elapsed) => Err(IssueError {
                kind: IssueErrorKind::Network,
                message: format!("STS did not respond within {} s", CALL_TIMEOUT.as_secs()),
            }),
        }
    }

    /// Reserves the start of the next call. Calls are spread evenly.
    fn next_turn(&self) -> Instant {
        let now = Instant::now();
        let mut next = self
            .next_call
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + self.interval);
        turn
    }
}

/// Counts a call while it is in flight, including one that times out.
struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    fn of(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("contract", &self.contract)
            .finish_non_exhaustive()
    }
}
