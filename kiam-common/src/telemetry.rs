//! Logs on standard error, as JSON or text, at a level that can change at run time; and the
//! registry of metrics.

use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt as format, reload};

/// Changes the log level. Global, as the subscriber that it belongs to.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The error of an invalid log level.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid log level {text:?}: {source}; write debug, info, warn or error, or levels per module such as info,kiam_agent=debug"
)]
pub struct LevelError {
    text: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The error of [`init`].
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log level is invalid.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// Logging is set up already.
    #[error("logging is set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Sets up logging.
///
/// # Errors
/// When the level is invalid, or logging is set up already.
pub fn init(json: bool, level: &str) -> Result<(), TelemetryError> {
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
    // Unset until here: `try_init` succeeds once per process.
    drop(LEVEL.set(handle));
    Ok(())
}

/// Returns the log level, or `None` if logging is not set up.
pub fn level() -> Option<String> {
    LEVEL.get()?.with_current(ToString::to_string).ok()
}

/// Changes the log level.
///
/// # Errors
/// When the level is invalid, or logging is not set up. The level does not change then.
pub fn set_level(level: &str) -> Result<(), LevelError> {
    let filter = filter(level)?;
    let error = |source| LevelError {
        text: level.to_owned(),
        source,
    };
    let handle = LEVEL
        .get()
        .ok_or_else(|| error("logging is not set up".into()))?;
    handle
        .reload(filter)
        .map_err(|source| error(Box::new(source)))
}

/// A registry for the metrics of a program, which contains those of the process (`process_*`).
///
/// # Errors
/// When these cannot be registered.
pub fn registry() -> prometheus::Result<crate::metrics::Registry> {
    let registry = crate::metrics::Registry::new();
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
