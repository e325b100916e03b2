//! The container image that `cargo xtask image` made last.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use toolchain::{Architecture, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An image that was made and checked.
#[derive(Debug, Clone)]
pub struct Image {
    /// All of it, as an OCI archive.
    pub archive: PathBuf,
}

/// The image of this machine's architecture that was made last.
///
/// # Errors
/// When none was.
pub fn made() -> Result<Image> {
    let archive = archive(Architecture::native()?);
    ensure!(
        archive.is_file(),
        "there is no image; make one by `cargo xtask image`"
    );
    Ok(Image { archive })
}

/// The agent in the image of this architecture that was made last.
///
/// # Errors
/// When none was.
pub fn agent(architecture: Architecture) -> Result<PathBuf> {
    let agent = root(&folder(architecture)).join("kiam-agent");
    ensure!(
        agent.is_file(),
        "there is no image for {architecture}; make one by `cargo xtask image \
         --architecture={architecture}`"
    );
    Ok(agent)
}

/// Folder in which the image of an architecture is made.
pub fn folder(architecture: Architecture) -> PathBuf {
    images().join(architecture.debian())
}

/// Root file system that the image in a folder is made of, as the Dockerfile's first stage has it.
pub fn root(folder: &Path) -> PathBuf {
    folder.join("context/image")
}

/// The image's file.
pub fn archive(architecture: Architecture) -> PathBuf {
    images().join(format!("kiam-{VERSION}-linux-{architecture}.oci.tar"))
}

fn images() -> PathBuf {
    workspace().join("target/image")
}
