//! The writer of the audit log, with one line of JSON for each record.
//!
//! A separate thread writes, so that a blocked file system or reader of standard output blocks
//! nothing else: the records wait in their queue, and are dropped and counted when it is full. A
//! file that was renamed, for example by logrotate, is created again. Records that cannot be
//! written are lost, counted and logged.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Record, Records, ReportMetrics};

/// The largest number of records in one write.
const BATCH: usize = 256;

/// The destination of the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AuditLog {
    #[default]
    Off,
    /// Standard output, which is used for nothing else.
    Stdout,
    /// The end of this file.
    File(PathBuf),
}

/// The error of an audit log that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The destination is invalid.
    #[error("expected stdout, file:PATH or off")]
    Syntax,
    /// The file cannot be opened.
    #[error("cannot open {} for the audit log: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// The thread cannot be started.
    #[error("cannot start the thread that writes the audit log: {0}")]
    Thread(io::Error),
}

impl AuditError {
    /// Returns whether another destination would avoid the error.
    pub(crate) const fn is_usage(&self) -> bool {
        matches!(self, Self::Syntax | Self::Open { .. })
    }
}

impl FromStr for AuditLog {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("file:")) {
            ("off", _) => Ok(Self::Off),
            ("stdout", _) => Ok(Self::Stdout),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(AuditError::Syntax),
        }
    }
}

/// Lines to write, and the channel for the result.
type Job = (Vec<u8>, oneshot::Sender<io::Result<()>>);

/// The writer of records.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    metrics: ReportMetrics,
    failing: bool,
}

impl Writer {
    /// Opens the audit log; returns `None` if it is off.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(crate) fn open(log: &AuditLog, metrics: ReportMetrics) -> Result<Option<Self>, AuditError> {
        match log {
            AuditLog::Off => Ok(None),
            AuditLog::Stdout => Self::to(metrics, |lines| {
                let mut out = io::stdout().lock();
                out.write_all(lines).and_then(|()| out.flush())
            })
            .map(Some),
            AuditLog::File(path) => {
                let mut file = Appended::open(path).map_err(|source| AuditError::Open {
                    path: path.clone(),
                    source,
                })?;
                Self::to(metrics, move |lines| file.append(lines)).map(Some)
            }
        }
    }

    pub(super) fn to(
        metrics: ReportMetrics,
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, AuditError> {
        let (jobs, mut from) = mpsc::channel::<Job>(1);
        // Not a blocking task: the runtime would wait for it at shutdown, even if it hangs.
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                while let Some((lines, done)) = from.blocking_recv() {
                    // Fails only while the program stops.
                    let _ = done.send(write(&lines));
                }
            })
            .map_err(AuditError::Thread)?;
        Ok(Self {
            jobs,
            metrics,
            failing: false,
        })
    }

    /// Writes until `stop` is cancelled, then the remaining records. Returns earlier only if the
    /// thread has died.
    pub(crate) async fn run(mut self, mut records: Records, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let more = tokio::select! {
                more = records.recv_many(&mut batch, BATCH) => more,
                () = stop.cancelled(), if !records.is_closed() => {
                    records.close();
                    continue;
                }
            };
            if more == 0 {
                // All senders are gone.
                return stop.cancelled().await;
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let (done, outcome) = oneshot::channel();
            let sent = self.jobs.send((lines(batch.drain(..)), done)).await;
            let Ok(outcome) = outcome.await else {
                return tracing::error!("the thread that writes the audit log has died");
            };
            drop(sent);
            self.count(count, outcome);
        }
    }

    fn count(&mut self, count: u64, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => {
                self.metrics.audit("written").inc_by(count);
                if self.failing {
                    tracing::info!("writing the audit log works again");
                }
                self.failing = false;
            }
            Err(error) => {
                self.metrics.audit("failed").inc_by(count);
                if !self.failing {
                    tracing::error!(
                        "cannot write the audit log: {error}; records are lost meanwhile \
                         (kiam_audit_records_total counts them)"
                    );
                }
                self.failing = true;
            }
        }
    }
}

fn lines(records: impl Iterator<Item = Record>) -> Vec<u8> {
    let mut lines = Vec::new();
    for record in records {
        // A struct of strings always serializes.
        if serde_json::to_writer(&mut lines, &record).is_ok() {
            lines.push(b'\n');
        }
    }
    lines
}

/// A file that is appended to, and created again if its path no longer refers to it.
struct Appended {
    path: PathBuf,
    file: File,
    /// True if the last line may be incomplete.
    torn: bool,
}

impl Appended {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            torn: false,
        })
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if !self.is_at_path()? {
            self.file = open(&self.path)?;
            self.torn = false;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        self.torn = true;
        self.file.write_all(lines)?;
        self.torn = false;
        Ok(())
    }

    /// Returns whether the path still refers to the open file.
    fn is_at_path(&self) -> io::Result<bool> {
        let open = self.file.metadata()?;
        Ok(std::fs::metadata(&self.path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}
