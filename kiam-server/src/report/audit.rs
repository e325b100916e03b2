//! The edge to files: audit records as lines of JSON.
//!
//! A thread of its own writes, so that a file system (or a reader of standard output) that stands
//! still stops nothing else: the records wait in their queue, and when that is full, new ones are
//! dropped and counted. A file that was moved away, as logrotate does, is made anew; what cannot be
//! written is lost, counted, and said in the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Record, Records, ReportMetrics};

/// Records written at once.
const BATCH: usize = 256;

/// Where the audit log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AuditLog {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output, where nothing else goes.
    Stdout,
    /// To the end of this file.
    File(PathBuf),
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A destination that is none.
    #[error("write stdout, file:PATH or off")]
    Syntax,
    /// A file that cannot be opened.
    #[error("cannot open {} for the audit log: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the thread that writes the audit log: {0}")]
    Thread(io::Error),
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

/// Lines, and where to say what became of them.
type Job = (Vec<u8>, oneshot::Sender<io::Result<()>>);

/// Writes records.
#[derive(Debug)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
    metrics: ReportMetrics,
    failing: bool,
}

impl Writer {
    /// Opens the log; none if there is to be none.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(log: &AuditLog, metrics: ReportMetrics) -> Result<Option<Self>, AuditError> {
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
        // Not a task: should it hang, it must not keep the process from ending.
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                while let Some((lines, done)) = from.blocking_recv() {
                    // Whoever asked may have been told to stop meanwhile.
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

    /// Writes until told to stop, then what is left. Ends by itself only if the thread has died.
    pub async fn run(mut self, mut records: Records, stop: CancellationToken) {
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
                // Nobody is left who could report.
                return stop.cancelled().await;
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let (done, outcome) = oneshot::channel();
            let sent = self.jobs.send((lines(batch.drain(..)), done)).await;
            let Ok(outcome) = outcome.await else {
                return tracing::error!("the thread that writes the audit log has died");
            };
            drop(sent);
            self.note(count, outcome);
        }
    }

    fn note(&mut self, count: u64, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => {
                self.metrics.audit("written").inc_by(count);
                if self.failing {
                    tracing::info!("the audit log is written again");
                }
                self.failing = false;
            }
            Err(error) => {
                self.metrics.audit("failed").inc_by(count);
                if !self.failing {
                    tracing::error!(
                        "the audit log cannot be written: {error}; records are lost until it can \
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
        // Strings in a struct: there is nothing in them that cannot be written.
        if serde_json::to_writer(&mut lines, &record).is_ok() {
            lines.push(b'\n');
        }
    }
    lines
}

/// A file that is appended to, under its name.
struct Appended {
    path: PathBuf,
    file: File,
    /// The last line may have no end.
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
        if !self.is_there()? {
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

    /// Whether the name is still this file's.
    fn is_there(&self) -> io::Result<bool> {
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
