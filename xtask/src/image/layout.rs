//! The image as an OCI layout: made by buildah, with no daemon and no registry, and unpacked by
//! umoci as a check.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolchain::{Architecture, exec, workspace};

use super::root::USER;

const DOCKERFILE: &str = "deploy/docker/Dockerfile";

/// Labels of an image.
#[derive(Debug)]
pub(super) struct Labels<'a> {
    pub(super) architecture: Architecture,
    pub(super) version: &'a str,
    pub(super) commit: &'a str,
    /// Time of its commit, in seconds since 1970.
    pub(super) seconds: &'a str,
}

/// Folder with the intermediate results of building an image.
#[derive(Debug)]
pub(super) struct Layout {
    folder: PathBuf,
}

impl Layout {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    fn oci(&self) -> PathBuf {
        self.folder.join("oci")
    }

    /// Folder into which umoci unpacks it.
    pub(super) fn unpacked(&self) -> PathBuf {
        self.folder.join("bundle")
    }

    fn reference(&self) -> String {
        format!("{}:kiam", self.oci().display())
    }

    /// Builds the image from a folder's `image` with the last stage of the Dockerfile.
    pub(super) fn build(&self, context: &Path, labels: &Labels<'_>) -> Result<()> {
        for made in [self.oci(), self.unpacked(), self.storage()] {
            if made.exists() {
                std::fs::remove_dir_all(&made)?;
            }
        }
        let empty = self.storage().join("empty");
        std::fs::create_dir_all(&empty)?;
        let mut build = Command::new("buildah");
        build
            // In a storage of its own, to leave other images alone.
            .args(["--storage-driver=vfs", "--root"])
            .arg(self.storage().join("root"))
            .arg("--runroot")
            .arg(self.storage().join("run"))
            .args(["build", "--quiet", "--format=oci", "--identity-label=false"])
            .args(["--timestamp", labels.seconds])
            .arg(format!("--platform=linux/{}", labels.architecture))
            .arg(format!("--build-arg=COMMIT={}", labels.commit))
            .arg(format!("--build-arg=VERSION={}", labels.version))
            // In place of the stage of this name, which needs a registry.
            .arg(format!("--build-context=build={}", context.display()))
            .arg("--file")
            .arg(workspace().join(DOCKERFILE))
            .arg(format!("--tag=oci:{}", self.reference()))
            .arg(empty);
        exec(&mut build)?;
        std::fs::remove_dir_all(self.storage()).context("cannot remove buildah's storage")
    }

    fn storage(&self) -> PathBuf {
        self.folder.join("storage")
    }

    /// Unpacks the image and compares it with its sources.
    pub(super) fn check(&self, root: &Path, labels: &Labels<'_>) -> Result<()> {
        let mut unpack = Command::new("umoci");
        unpack.arg("unpack").arg("--image").arg(self.reference());
        exec(unpack.arg(self.unpacked()))?;
        let rootfs = self.unpacked().join("rootfs");
        let mut compare = Command::new("diff");
        compare.args(["--recursive", "--brief", "--no-dereference"]);
        exec(compare.arg(root).arg(rootfs)).context("the image differs from its sources")?;
        let config = self.config()?;
        let label = |name: &str| {
            let name = format!("org.opencontainers.image.{name}");
            config["config"]["Labels"][name]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        ensure!(
            config["architecture"] == labels.architecture.debian(),
            "its architecture: {config}"
        );
        ensure!(
            label("version") == labels.version,
            "its version: {}",
            label("version")
        );
        ensure!(
            label("revision") == labels.commit,
            "its commit: {}",
            label("revision")
        );
        ensure!(
            config["config"]["User"] == format!("{USER}:{USER}"),
            "its user: {config}"
        );
        Ok(())
    }

    /// The image's configuration: index, manifest and configuration name one another by digest.
    fn config(&self) -> Result<Value> {
        let read = |path: PathBuf| -> Result<Value> {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok(serde_json::from_str(&text)?)
        };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().context("a digest")?;
            read(self.oci().join("blobs").join(digest.replace(':', "/")))
        };
        let index = read(self.oci().join("index.json"))?;
        let manifest = blob(&index["manifests"][0])?;
        let layers = manifest["layers"].as_array().map_or(0, Vec::len);
        ensure!(layers == 1, "it has {layers} layers");
        blob(&manifest["config"])
    }

    /// Packs the layout into one file, which `skopeo`, `podman load` and `ctr import` take.
    pub(super) fn archive(&self, file: &Path, seconds: &str) -> Result<u64> {
        let mut tar = Command::new("tar");
        tar.args([
            "--create",
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ])
        .arg(format!("--mtime=@{seconds}"))
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(self.oci())
        .arg(".");
        exec(&mut tar)?;
        Ok(std::fs::metadata(file)?.len())
    }
}
