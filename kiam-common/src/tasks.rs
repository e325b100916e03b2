//! Supervised background tasks.
//!
//! Every long-running future of a program is spawned through one [`Tasks`]. No task may end before
//! the program does: the first one that returns or panics is reported by name, and the program
//! shuts down.

use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// The failure of a background task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned before the program was asked to stop.
    #[error("the task {name:?} ended unexpectedly; the log before this line says why")]
    Ended {
        /// The name of the task.
        name: &'static str,
    },
    /// A task panicked.
    #[error("the task {name:?} panicked; the panic message is on standard error")]
    Panicked {
        /// The name of the task.
        name: &'static str,
    },
    /// Tasks were still running at the end of the grace period.
    #[error("tasks did not stop in time: {}", names.join(", "))]
    Abandoned {
        /// The names of the tasks.
        names: Vec<&'static str>,
    },
}

/// The background tasks of one program.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: Vec<(Id, &'static str)>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the token that is cancelled when the program stops. Tasks return when they see it.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(work).id();
        self.names.push((id, name));
    }

    /// Waits until a task ends before the program does.
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

    /// Tells all tasks to stop, and waits for them, for at most `grace`.
    ///
    /// # Errors
    /// When a task did not stop in time, or panicked meanwhile.
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
    async fn the_first_task_to_end_is_named() {
        let mut tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        tasks.spawn("short", async {});
        assert_eq!(
            tasks.failed().await.to_string(),
            "the task \"short\" ended unexpectedly; the log before this line says why"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_tasks_and_names_those_that_did_not_stop() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("obedient", async move { stop.cancelled().await });
        tasks.spawn("deaf", std::future::pending());
        let error = tasks.shut_down(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "tasks did not stop in time: deaf");
    }
}
