//! Reconciliation loop: keeps rules in the kernel in effect that other programs may change.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Interval of checks, for changes that the kernel does not report.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between checks, however often something changes.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Rules in the kernel that other programs may change.
pub(crate) trait Reconcile: Send {
    /// Waits until the kernel reports a change; forever, if it reports none.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Restores what other programs have changed, and counts the outcome.
    fn reconcile(&mut self) -> impl Future<Output = ()> + Send;

    /// Removes the rules.
    fn remove(&mut self) -> impl Future<Output = ()> + Send;
}

/// Keeps the rules in effect until `stop`, then removes them if `remove` is set.
pub(crate) async fn run(mut rules: impl Reconcile, stop: CancellationToken, remove: bool) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = rules.changed() => {}
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
        rules.reconcile().await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(MIN_PAUSE) => {}
        }
    }
    if remove {
        rules.remove().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    /// Rules that record what is done to them, and when.
    struct Recorded {
        changes: mpsc::UnboundedReceiver<()>,
        began: Instant,
        log: Arc<Mutex<Vec<(&'static str, u64)>>>,
    }

    impl Recorded {
        fn record(&self, action: &'static str) {
            let at = self.began.elapsed().as_secs();
            self.log.lock().unwrap().push((action, at));
        }
    }

    impl Reconcile for Recorded {
        async fn changed(&mut self) {
            if self.changes.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }

        async fn reconcile(&mut self) {
            self.record("reconcile");
        }

        async fn remove(&mut self) {
            self.record("remove");
        }
    }

    /// Runs for `seconds`, with changes at the start, and returns what was done.
    async fn record(changes: usize, seconds: u64, remove: bool) -> Vec<(&'static str, u64)> {
        let (change, receiver) = mpsc::unbounded_channel();
        for _ in 0..changes {
            change.send(()).unwrap();
        }
        let log = Arc::<Mutex<Vec<_>>>::default();
        let rules = Recorded {
            changes: receiver,
            began: Instant::now(),
            log: Arc::clone(&log),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(rules, stop.clone(), remove));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.cancel();
        running.await.unwrap();
        std::mem::take(&mut *log.lock().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn rules_are_checked_at_changes_and_at_intervals() {
        let log = record(3, 25, false).await;
        // Three changes at once, a second apart; then at the interval after the pause.
        let expected = [0, 1, 2, 13, 24].map(|at| ("reconcile", at));
        assert_eq!(log, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn rules_are_removed_only_on_request() {
        assert_eq!(record(0, 5, true).await, [("remove", 5)]);
        assert_eq!(record(0, 5, false).await, []);
    }
}
