//! A clock that stands still until the test moves it, for a loop that keeps something installed:
//! it checks when the kernel reports a change or after a period, and then rests.
//!
//! While the clock stands still, only a report of the kernel can cause a check. That shows which of
//! the two causes a restoration has, without a measurement of time.

use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::hang_limit::hang_limit;

/// Longer than the rest after each check.
const REST: Duration = Duration::from_millis(1100);
/// Longer than the period between checks.
const PERIOD: Duration = Duration::from_millis(10_100);
const PAUSE: Duration = Duration::from_millis(10);

type Request = (Duration, mpsc::Sender<()>);

/// The test's side of the clock.
#[derive(Debug)]
pub(crate) struct FrozenClock {
    requests: UnboundedSender<Request>,
    /// Checks after which the test has let the loop rest.
    rested: Cell<u64>,
}

/// The loop's side of the clock.
#[derive(Debug)]
pub(crate) struct FrozenRuntime(UnboundedReceiver<Request>);

/// Cause of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A report of the kernel.
    Report,
    /// The end of the period.
    Period,
}

/// Makes a clock that stands still.
pub(crate) fn frozen_clock() -> (FrozenClock, FrozenRuntime) {
    let (requests, received) = unbounded_channel();
    let rested = Cell::new(0);
    (FrozenClock { requests, rested }, FrozenRuntime(received))
}

impl FrozenRuntime {
    /// Runs a future by this clock.
    #[track_caller]
    pub(crate) fn block_on<T>(self, future: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        // tokio's paused clock moves by itself when there is nothing to do, except while there is
        // blocking work.
        let (_end, ended) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || ended.recv());
        let Self(mut requests) = self;
        runtime.spawn(async move {
            while let Some((by, moved)) = requests.recv().await {
                tokio::time::advance(by).await;
                // Whoever asked may have panicked.
                let _ = moved.send(());
            }
        });
        runtime.block_on(future)
    }
}

impl FrozenClock {
    /// Waits until something is `restored`, by checks with this cause. `checks` is the number of
    /// checks that are complete.
    #[track_caller]
    pub(crate) fn wait_for(
        &self,
        cause: Cause,
        checks: impl Fn() -> u64,
        restored: impl Fn() -> bool,
    ) {
        let mut pauses = hang_limit().as_millis() / PAUSE.as_millis();
        let mut period_has_ended = false;
        while !restored() {
            let complete = checks();
            if complete > self.rested.get() {
                // It rests: its task does not yield between the end of a check and its rest.
                self.rested.set(complete);
                self.advance(REST);
                period_has_ended = false;
            } else if cause == Cause::Period && !period_has_ended {
                self.advance(PERIOD);
                period_has_ended = true;
            }
            assert_ne!(pauses, 0, "not restored, after {complete} checks");
            std::thread::sleep(PAUSE);
            pauses -= 1;
        }
    }

    #[track_caller]
    fn advance(&self, by: Duration) {
        let (moved, moving) = mpsc::channel();
        self.requests.send((by, moved)).expect("the loop runs");
        moving.recv_timeout(hang_limit()).expect("the loop runs");
    }
}
