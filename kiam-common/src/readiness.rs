//! Whether a program is ready to serve: when nothing that it awaits is left.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// What a program still awaits before it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<&'static str>>>);

/// Keeps a program unready; dropping it, or [`Awaited::done`], ends that.
#[derive(Debug)]
pub struct Awaited {
    what: &'static str,
    readiness: Readiness,
    may_come: bool,
}

impl Readiness {
    /// Ready at once, as nothing is awaited yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the returned value is dropped.
    #[must_use]
    pub fn awaits(&self, what: &'static str) -> Awaited {
        self.0.send_modify(|pending| {
            pending.insert(what);
        });
        Awaited {
            what,
            readiness: self.clone(),
            may_come: true,
        }
    }

    /// What is still awaited; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
    }

    /// Waits until nothing else than `what` is awaited.
    pub async fn all_but(&self, what: &str) {
        let mut pending = self.0.subscribe();
        let alone = |pending: &BTreeSet<&'static str>| pending.iter().all(|other| *other == what);
        // As below.
        drop(pending.wait_for(alone).await);
    }

    /// Waits until nothing is awaited.
    pub async fn ready(&self) {
        let mut pending = self.0.subscribe();
        // It ends with the last of the senders only, and one of them is here.
        drop(pending.wait_for(BTreeSet::is_empty).await);
    }
}

impl Awaited {
    /// It has come.
    pub fn done(self) {}

    /// It will not come: the program is not ready until it ends.
    pub fn never(mut self) {
        self.may_come = false;
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if !self.may_come {
            return;
        }
        self.readiness.0.send_modify(|pending| {
            pending.remove(self.what);
        });
        let pending = self.readiness.pending();
        if pending.is_empty() {
            tracing::info!("ready");
        } else {
            tracing::info!(done = self.what, still = ?pending, "not ready yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_comes_is_awaited_for_good_and_others_go_on() {
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
    async fn ready_when_all_have_come() {
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
