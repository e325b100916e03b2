//! Background work with an owner who sees it die.
//!
//! Every long-running future of a program is spawned through one [`Tasks`]. None of them is meant
//! to end before the program does: the first that does, by a panic too, ends the program in order,
//! and is named.

use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// Why a program's background work stopped.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned though nobody asked it to.
    #[error("the task {name:?} ended by itself, which it never should")]
    Ended {
        /// The task.
        name: &'static str,
    },
    /// A task panicked.
    #[error("the task {name:?} panicked; its message is on standard error")]
    Panicked {
        /// The task.
        name: &'static str,
    },
    /// Tasks were still running when the time to stop was over.
    #[error("stopped before it was done: {}", names.join(", "))]
    Abandoned {
        /// The tasks.
        names: Vec<&'static str>,
    },
}

/// The background work of one program.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: Vec<(Id, &'static str)>,
    stop: CancellationToken,
}

impl Tasks {
    /// No work yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the program is to stop. Tasks finish in order when they see it.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(work).id();
        self.names.push((id, name));
    }

    /// Waits until a task ends by itself. Does not return while all is well.
    pub async fn failed(&mut self) -> TaskError {
        match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => TaskError::Ended {
                name: self.forget(id),
            },
            Some(Err(error)) => TaskError::Panicked {
                name: self.forget(error.id()),
            },
            None => std::future::pending().await,
        }
    }

    /// Tells all tasks to stop, and waits for them, `grace` at most.
    ///
    /// # Errors
    /// When tasks had to be abandoned, or one panicked while it stopped.
    pub async fn shut_down(mut self, grace: Duration) -> Result<(), TaskError> {
        self.stop.cancel();
        let mut outcome = Ok(());
        let drained = tokio::time::timeout(grace, async {
            while let Some(ended) = self.running.join_next_with_id().await {
                match ended {
                    Ok((id, ())) => {
                        self.forget(id);
                    }
                    Err(error) => {
                        outcome = Err(TaskError::Panicked {
                            name: self.forget(error.id()),
                        });
                    }
                }
            }
        })
        .await;
        match drained {
            Ok(()) => outcome,
            Err(_elapsed) => Err(TaskError::Abandoned {
                names: self.names.iter().map(|(_, name)| *name).collect(),
            }),
        }
    }

    fn forget(&mut self, id: Id) -> &'static str {
        let at = self.names.iter().position(|(known, _)| *known == id);
        at.map_or("unknown", |at| self.names.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_to_end_is_named() {
        let mut tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        tasks.spawn("short", async {});
        assert_eq!(
            tasks.failed().await.to_string(),
            "the task \"short\" ended by itself, which it never should"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shutting_down_waits_and_names_what_did_not_stop() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("obedient", async move { stop.cancelled().await });
        tasks.spawn("deaf", std::future::pending());
        let error = tasks.shut_down(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "stopped before it was done: deaf");
    }
}
