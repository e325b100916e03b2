//! Notification of changes to files.

use std::path::PathBuf;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// The changes in a set of folders. Dropping it ends the watch.
#[derive(Debug)]
pub struct Changes {
    events: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

/// Watches folders rather than files: when another file is renamed over a file, or a symbolic link
/// is replaced, only the folder has an event.
///
/// # Errors
/// When a folder cannot be watched.
pub fn folders(folders: &[PathBuf]) -> notify::Result<Changes> {
    let (changed, events) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error means that events may be lost: it counts as a change.
        if event.is_ok_and(|event| is_read(event.kind)) {
            return;
        }
        // A full channel already holds the notification.
        let _ = changed.try_send(());
    })?;
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(Changes {
        events,
        _watcher: watcher,
    })
}

impl Changes {
    /// Resolves when something may have changed since the last call.
    pub async fn next(&mut self) {
        if self.events.recv().await.is_none() {
            // Unreachable: `self` owns the watcher, which owns the sender.
            std::future::pending::<()>().await;
        }
    }

    /// Discards the pending notification. Call it before reading the files.
    pub fn forget(&mut self) {
        while self.events.try_recv().is_ok() {}
    }
}

/// Returns whether an event is a read: the caller reads the files after each change, and must not
/// be woken by that.
const fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if !matches!(access, AccessKind::Close(AccessMode::Write)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn writes_and_renames_wake_and_reads_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "old").unwrap();
        let mut changes = folders(&[folder.path().to_owned()]).unwrap();
        let mut woken = async |limit| {
            tokio::time::timeout(Duration::from_millis(limit), changes.next())
                .await
                .is_ok()
        };
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
        assert!(!woken(300).await);
        std::fs::write(&file, "new").unwrap();
        assert!(woken(5000).await);
        while woken(300).await {}
        std::fs::rename(&file, folder.path().join("other")).unwrap();
        assert!(woken(5000).await);
    }
}
