//! Background tasks of the redirection.

use std::fmt;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kiam_common::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use crate::view::View;

type Work = Box<dyn FnOnce(View, CancellationToken) -> BoxFuture<'static, ()> + Send>;

/// A task that runs as long as the agent. If it ends earlier, the agent reports it by name and
/// stops.
pub struct BackgroundTask {
    name: &'static str,
    work: Work,
}

impl fmt::Debug for BackgroundTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BackgroundTask").field(&self.name).finish()
    }
}

impl BackgroundTask {
    /// Creates a task that is not spawned yet. `work` runs until the token is cancelled.
    pub fn new<F>(
        name: &'static str,
        work: impl FnOnce(View, CancellationToken) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            name,
            work: Box::new(|view, stop| work(view, stop).boxed()),
        }
    }

    pub(super) fn spawn(self, tasks: &mut Tasks, view: View) {
        let stop = tasks.stop();
        tasks.spawn(self.name, (self.work)(view, stop));
    }
}
