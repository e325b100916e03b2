//! Logs: JSON or text on standard error, at a level that can be changed while running. And the
//! registry that metrics are in.

use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt as format, reload};

/// Changes the level. Of the process, as the subscriber is that it belongs to.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

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
    // It is the first: there can be one subscriber only.
    drop(LEVEL.set(handle));
    Ok(())
}

/// What is logged now; none if nothing is.
#[must_use]
pub fn level() -> Option<String> {
    LEVEL.get()?.with_current(ToString::to_string).ok()
}

/// Logs at `level` from now on.
///
/// # Errors
/// When the text is no level, or nothing is logged; what was logged still is.
pub fn set_level(level: &str) -> Result<(), LevelError> {
    let filter = filter(level)?;
    let error = |source| LevelError {
        text: level.to_owned(),
        source,
    };
    let handle = LEVEL
        .get()
        .ok_or_else(|| error("this process does not log".into()))?;
    handle
        .reload(filter)
        .map_err(|source| error(Box::new(source)))
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
