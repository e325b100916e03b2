//! Where the cluster's objects come from: the Kubernetes API, or files of the same objects.

mod files;
mod kubernetes;
mod lookup;
mod manifest;
mod metrics;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::str::FromStr;

pub use files::{FileError, Files};
pub use kubernetes::Watches;
pub use lookup::{LookupError, lookup};
pub use manifest::{ManifestError, PodManifest};
pub use metrics::WatchMetrics;

/// A source as `--source` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFlag {
    /// The Kubernetes API.
    Kubernetes,
    /// A file, or a folder of files, of the same objects.
    Files(PathBuf),
}

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no source; write kubernetes, or file:PATH for a YAML file or a folder of them"
)]
pub struct SourceFlagError {
    text: String,
}

impl FromStr for SourceFlag {
    type Err = SourceFlagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("file", path)) if !path.is_empty() => Ok(Self::Files(path.into())),
            _ => Err(SourceFlagError {
                text: text.to_owned(),
            }),
        }
    }
}
