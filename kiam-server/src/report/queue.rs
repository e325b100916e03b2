//! A queue that nobody waits at: what finds no room is dropped, and counted.

use prometheus::IntCounter;
use tokio::sync::mpsc;

/// The end that sessions have.
#[derive(Debug)]
pub(super) struct Queue<T> {
    to: mpsc::Sender<T>,
    dropped: IntCounter,
}

/// With room for `most`, counting what finds none in `dropped`.
pub(super) fn bounded<T>(most: usize, dropped: IntCounter) -> (Queue<T>, mpsc::Receiver<T>) {
    let (to, from) = mpsc::channel(most);
    (Queue { to, dropped }, from)
}

impl<T> Queue<T> {
    /// Whether there was room.
    pub(super) fn push(&self, item: T) -> bool {
        let pushed = self.to.try_send(item).is_ok();
        if !pushed {
            self.dropped.inc();
        }
        pushed
    }
}
