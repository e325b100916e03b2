//! Wakes whoever reads files when they may have changed.

use std::path::PathBuf;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// News of folders. Dropping it ends the watch.
#[derive(Debug)]
pub struct Changes {
    news: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

/// Watches folders: a file that is replaced by renaming another over it, or by swapping a link,
/// is seen in its folder and not by itself.
///
/// # Errors
/// When a folder cannot be watched.
pub fn folders(folders: &[PathBuf]) -> notify::Result<Changes> {
    let (changed, news) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error means that news may have been lost. A full channel already holds the news.
        if event.is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        let _ = changed.try_send(());
    })?;
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(Changes {
        news,
        _watcher: watcher,
    })
}

impl Changes {
    /// Resolves when something may have changed since it last did.
    pub async fn next(&mut self) {
        if self.news.recv().await.is_none() {
            // The watcher, and with it the sender, lives as long as this.
            std::future::pending::<()>().await;
        }
    }

    /// Forgets what has been heard so far: what changed is about to be read.
    pub fn forget(&mut self) {
        while self.news.try_recv().is_ok() {}
    }
}

/// Whoever reads the files on news of them must not be woken by that.
const fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if !matches!(access, AccessKind::Close(AccessMode::Write)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn writing_wakes_and_reading_does_not() {
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
