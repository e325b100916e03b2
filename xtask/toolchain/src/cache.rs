//! The user's cache folder: complete results of builds and downloads.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Written last: a folder without it was interrupted.
const COMPLETE: &str = ".complete";
const LOG_TAIL_LINES: usize = 30;

/// Folder in the cache, with a name that identifies its content exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache(PathBuf);

/// Short digest of the sources of a result, for the name of its folder.
pub fn fingerprint(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    digest
        .finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Cache {
    /// The folder of this name in kiam's cache, there or not.
    pub fn new(name: &str) -> Self {
        let linker = crate::kernel::linker_root();
        Self(linker.with_file_name(name))
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns whether the folder is complete.
    pub fn is_complete(&self) -> bool {
        self.0.join(COMPLETE).is_file()
    }

    /// Discards the folder, which no longer works. It is created again the next time.
    ///
    /// # Errors
    /// Fails when the folder cannot be written.
    pub fn spoil(&self) -> Result<()> {
        let complete = self.0.join(COMPLETE);
        std::fs::remove_file(&complete)
            .with_context(|| format!("cannot remove {}", complete.display()))
    }

    /// Fills it, unless it is complete; by one process at a time. A file `log` beside it takes
    /// what the tools print.
    ///
    /// # Errors
    /// Fails when `fill` fails; the folder is created again the next time.
    pub fn fill(&self, fill: impl FnOnce(&Path, &Log) -> Result<()>) -> Result<()> {
        let parent = self.0.parent().context("the cache folder has a parent")?;
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
        let lock = self.beside("lock");
        let lock =
            File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock().context("cannot lock the cache folder")?;
        if self.is_complete() {
            return Ok(());
        }
        if self.0.exists() {
            std::fs::remove_dir_all(&self.0)
                .with_context(|| format!("cannot remove {}", self.0.display()))?;
        }
        std::fs::create_dir(&self.0)
            .with_context(|| format!("cannot make {}", self.0.display()))?;
        let log = Log::create(self.beside("log"))?;
        fill(&self.0, &log)?;
        std::fs::write(self.0.join(COMPLETE), "").context("cannot finish the cache folder")
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(".");
        name.push(extension);
        name.into()
    }
}

/// File for the output of tools.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn create(path: PathBuf) -> Result<Self> {
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Runs a tool that may take long.
    ///
    /// # Errors
    /// Fails when the tool fails; the error holds the end of its output.
    pub fn exec(&self, command: &mut Command) -> Result<()> {
        let output = || self.file.try_clone().context("cannot share the log");
        let status = command
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .status()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n    ");
        let (program, path) = (command.get_program().display(), self.path.display());
        bail!("{program} failed ({status}); all of it is in {path}, the end is\n    {tail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_folders_are_made_again_and_complete_ones_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(folder.path().join("thing-1"));
        let failed = cache.fill(|path, _| {
            std::fs::write(path.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err() && !cache.is_complete());
        let filled = cache.fill(|path, log| {
            assert!(!path.join("half").exists());
            log.exec(Command::new("sh").args(["-c", "echo printed"]))
        });
        filled.unwrap();
        assert!(cache.is_complete());
        cache.fill(|_, _| panic!("it is complete")).unwrap();
        let log = std::fs::read_to_string(cache.beside("log"));
        assert_eq!(log.unwrap(), "printed\n");
        cache.spoil().unwrap();
        assert!(!cache.is_complete());
    }

    #[test]
    fn a_tool_that_fails_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(folder.path().join("thing-1"));
        let error =
            cache.fill(|_, log| log.exec(Command::new("sh").args(["-c", "echo because; exit 3"])));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("because") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn a_fingerprint_is_of_the_parts_and_where_they_end() {
        assert_eq!(fingerprint(&["a", "b"]), fingerprint(&["a", "b"]));
        assert_ne!(fingerprint(&["a", "b"]), fingerprint(&["ab", ""]));
        assert_eq!(fingerprint(&[]).len(), 12);
    }
}
