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
        }
    }

    /// What is still awaited; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
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
}

impl Drop for Awaited {
    fn drop(&mut self) {
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
