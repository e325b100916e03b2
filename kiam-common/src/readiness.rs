//! Readiness of a program: it is ready once every condition that it awaits is met.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// The conditions that a program awaits before it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<&'static str>>>);

/// A condition of readiness. It is met by [`Awaited::done`], or when this is dropped.
#[derive(Debug)]
pub struct Awaited {
    condition: &'static str,
    readiness: Readiness,
    failed: bool,
}

impl Readiness {
    /// A program that is ready, because no condition is awaited yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition. The program is not ready until the returned value is dropped.
    #[must_use]
    pub fn awaits(&self, condition: &'static str) -> Awaited {
        self.0.send_modify(|pending| {
            pending.insert(condition);
        });
        Awaited {
            condition,
            readiness: self.clone(),
            failed: false,
        }
    }

    /// Returns the conditions that are not met; empty when ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
    }

    /// Waits until all conditions except `condition` are met.
    pub async fn all_but(&self, condition: &str) {
        let mut pending = self.0.subscribe();
        let met = |pending: &BTreeSet<&'static str>| pending.iter().all(|name| *name == condition);
        // Cannot fail: `self` holds a sender.
        drop(pending.wait_for(met).await);
    }

    /// Waits until all conditions are met.
    pub async fn ready(&self) {
        let mut pending = self.0.subscribe();
        // Cannot fail: `self` holds a sender.
        drop(pending.wait_for(BTreeSet::is_empty).await);
    }
}

impl Awaited {
    /// Marks the condition as met.
    pub fn done(self) {}

    /// Marks the condition as impossible to meet: the program stays unready until it ends.
    pub fn never(mut self) {
        self.failed = true;
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if self.failed {
            return;
        }
        self.readiness.0.send_modify(|pending| {
            pending.remove(self.condition);
        });
        let pending = self.readiness.pending();
        if pending.is_empty() {
            tracing::info!("ready");
        } else {
            tracing::info!(done = self.condition, still = ?pending, "not ready yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_fails_stays_pending_and_does_not_block_the_others() {
        let readiness = Readiness::new();
        let check = readiness.awaits("check");
        readiness.all_but("check").await;
        let pods = readiness.awaits("pods");
        let others = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.all_but("check").await }
        });
        tokio::task::yield_now().await;
        assert!(!others.is_finished());
        check.never();
        pods.done();
        others.await.unwrap();
        assert_eq!(readiness.pending(), ["check"]);
    }

    #[tokio::test]
    async fn a_program_is_ready_once_all_conditions_are_met() {
        let readiness = Readiness::new();
        let pods = readiness.awaits("pods");
        let namespaces = readiness.awaits("namespaces");
        pods.done();
        assert_eq!(readiness.pending(), ["namespaces"]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(namespaces);
        waiting.await.unwrap();
        assert!(readiness.pending().is_empty());
        readiness.ready().await;
    }
}
