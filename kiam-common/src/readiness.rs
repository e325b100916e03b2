//! Whether a program is ready to serve: when nothing that it awaits is left.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What a program still awaits before it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

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
        self.lock().insert(what);
        Awaited {
            what,
            readiness: self.clone(),
        }
    }

    /// What is still awaited; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Awaited {
    /// It has come.
    pub fn done(self) {}
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut pending = self.readiness.lock();
        pending.remove(self.what);
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

    #[test]
    fn ready_when_all_have_come() {
        let readiness = Readiness::new();
        let pods = readiness.awaits("pods");
        let namespaces = readiness.awaits("namespaces");
        pods.done();
        assert_eq!(readiness.pending(), ["namespaces"]);
        drop(namespaces);
        assert!(readiness.pending().is_empty());
    }
}
