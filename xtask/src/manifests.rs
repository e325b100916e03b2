//! Manifests of the workspace's packages.

use std::path::Path;

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand};

/// Reads the manifests of the workspace in a directory.
pub(crate) fn read(root: &Path) -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.current_dir(root).no_deps();
    command.exec().context("cannot read the workspace")
}
