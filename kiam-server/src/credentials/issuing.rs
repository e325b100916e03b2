//! Calls to AWS within limits, and what all entries share.

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

/// A call that takes longer counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What all entries have in common.
pub(super) struct Shared {
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: fn() -> f64,
    pub(super) contract: ExpiryContract,
    pub(super) metrics: StoreMetrics,
    pub(super) places: Semaphore,
    pub(super) interval: Duration,
    pub(super) next_call: Mutex<Option<Instant>>,
}

impl Shared {
    /// One call to AWS, when its turn comes.
    pub(super) async fn issue(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
    ) -> Result<SessionCredentials, IssueError> {
        let _place = self.places.acquire().await;
        tokio::time::sleep_until(self.turn()).await;
        let _counted = InFlight::of(&self.metrics.current);
        let began = Instant::now();
        let (issuer, subject) = (Arc::clone(&self.issuer), Arc::clone(identity));
        // In a task of its own: a panic in the SDK is this call's failure, not the entry's end.
        let call =
            AbortOnDropHandle::new(tokio::spawn(async move { issuer.issue(&subject).await }));
        let outcome = tokio::time::timeout(CALL_TIMEOUT, call).await;
        self.metrics.timing.observe(began.elapsed().as_secs_f64());
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_died)) => Err(IssueError {
                kind: IssueErrorKind::Fault,
                message: "the call to STS broke down inside of this server; see its standard error"
                    .to_owned(),
            }),
            Err(_elapsed) => Err(IssueError {
                kind: IssueErrorKind::Network,
                message: format!("STS did not answer within {} s", CALL_TIMEOUT.as_secs()),
            }),
        }
    }

    /// When the next call may begin: calls are spread evenly.
    fn turn(&self) -> Instant {
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

/// Counts a call while it is under way, also one that is given up.
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
