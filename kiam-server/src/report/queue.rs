//! A bounded queue that never blocks: items that do not fit are dropped and counted.

use prometheus::IntCounter;
use tokio::sync::mpsc;

/// The sending half of a queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    to: mpsc::Sender<T>,
    dropped: IntCounter,
}

/// Returns a queue of `capacity` items. `dropped` counts items that do not fit.
pub(super) fn bounded<T>(capacity: usize, dropped: IntCounter) -> (Queue<T>, mpsc::Receiver<T>) {
    let (to, from) = mpsc::channel(capacity);
    (Queue { to, dropped }, from)
}

impl<T> Queue<T> {
    /// Adds an item; returns whether it fitted.
    pub(super) fn push(&self, item: T) -> bool {
        let pushed = self.to.try_send(item).is_ok();
        if !pushed {
            self.dropped.inc();
        }
        pushed
    }
}
