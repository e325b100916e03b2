//! Sources of the objects of the cluster: the Kubernetes API, or files.

mod files;
mod kubernetes;
mod lookup;
mod manifest;
mod metrics;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::str::FromStr;

pub(crate) use files::{FileError, Files};
pub(crate) use kubernetes::Watches;
pub(crate) use lookup::{LookupError, lookup};
pub(crate) use metrics::WatchMetrics;

/// The value of `--source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFlag {
    Kubernetes,
    /// A file of Kubernetes objects, or a folder of such files.
    Files(PathBuf),
}

/// The error of an invalid `--source`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid source {text:?}; write kubernetes, or file:PATH for a YAML file or a folder of them"
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
