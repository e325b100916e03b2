//! Logs: JSON or text on standard error, at a level that can be changed while running. And the
//! registry that metrics are in.

use std::fmt;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt as format, reload};

/// Changes the log level of the running program.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// Why a text is no log level.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no log level; write debug, info, warn or error, or targets as in info,kiam_agent=debug: {source}"
)]
pub struct LevelError {
    text: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is none.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The process logs already.
    #[error("logging was set up before: {0}")]
    Twice(#[from] TryInitError),
}

/// Begins to log.
///
/// # Errors
/// When the level is none, or the process logs already.
pub fn init(json: bool, level: &str) -> Result<LogLevel, TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        let layer = format::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr);
        registry.with(layer).try_init()?;
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        registry
            .with(format::layer().with_ansi(ansi).with_writer(std::io::stderr))
            .try_init()?;
    }
    Ok(LogLevel(handle))
}

impl LogLevel {
    /// Logs at `level` from now on.
    ///
    /// # Errors
    /// When the text is no level; the old one stays.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let error = |source| LevelError {
            text: level.to_owned(),
            source,
        };
        self.0
            .reload(filter(level)?)
            .map_err(|e| error(Box::new(e)))
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.0.with_current(ToString::to_string).unwrap_or_default();
        f.debug_tuple("LogLevel").field(&level).finish()
    }
}

/// A registry for a program's metrics, with those of the process itself (`process_*`) in it.
///
/// # Errors
/// When these cannot be registered.
pub fn registry() -> prometheus::Result<prometheus::Registry> {
    let registry = prometheus::Registry::new();
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process))?;
    Ok(registry)
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|source| LevelError {
            text: level.to_owned(),
            source: Box::new(source),
        })
}
