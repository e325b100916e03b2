//! Disk of each node: Kubernetes' components, their certificates and settings,
//! and the container images.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use toolchain::{Architecture, exec};

use crate::node::disk::MOUNT;
use crate::node::make_disk;
use testbed::cluster::{ControlPlane, components};
use testbed::pki::{Leaf, PemFiles};
use testbed::sandbox::Sandbox;

/// Image whose one program both keeps pods' namespaces and requests credentials.
pub(super) const POD_IMAGE: &str = "docker.io/library/pod:1";
/// Names of the image's program, one for each of its functions.
const NAMES: [&str; 2] = ["ask", "pause"];

const SETUP: &str = include_str!("files/setup.sh");
const FILES: [(&str, &str); 6] = [
    ("setup.sh", SETUP),
    ("kubelet.yaml", include_str!("files/kubelet.yaml")),
    ("kubelet.service", include_str!("files/kubelet.service")),
    (
        "kube-proxy.service",
        include_str!("files/kube-proxy.service"),
    ),
    ("containerd.toml", include_str!("files/containerd.toml")),
    ("bridge.conflist", include_str!("files/bridge.conflist")),
];
const POD_PROGRAM: &str = include_str!("files/pod.c");

/// An image of kiam: an archive, and the name that it goes by on the nodes.
#[derive(Debug, Clone)]
pub(super) struct KiamImage {
    pub(super) archive: PathBuf,
    pub(super) name: String,
}

/// Makes the disk for these nodes. Returns its file.
pub(super) fn make(
    sandbox: &Sandbox,
    plane: &ControlPlane,
    nodes: &[super::identity::Identity],
    images: &[KiamImage],
) -> Result<PathBuf> {
    let root = sandbox.folder("payload")?;
    let make = |name: &str| -> Result<PathBuf> {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    };
    let files = make("files")?;
    for (name, text) in FILES {
        std::fs::write(files.join(name), text)?;
    }
    programs(&make("bin")?)?;
    let tls = make("tls")?;
    for node in nodes {
        let name = format!("system:node:{}", node.name);
        let address = node.address.to_string();
        let leaf = Leaf {
            name: &name,
            organization: Some("system:nodes"),
            alternative_names: &[&node.name, &address],
            ..Leaf::default()
        };
        user(plane, &root, &tls, &node.name, &leaf)?;
    }
    let leaf = Leaf {
        name: "system:kube-proxy",
        ..Leaf::default()
    };
    user(plane, &root, &tls, "kube-proxy", &leaf)?;
    std::fs::copy(plane.authority(), root.join("ca.crt"))?;
    let folder = make("images")?;
    pod_image(sandbox, &folder.join("pod.tar"))?;
    for (number, image) in images.iter().enumerate() {
        std::fs::copy(&image.archive, folder.join(format!("kiam-{number}.tar")))
            .with_context(|| format!("cannot copy {}", image.archive.display()))?;
        std::fs::write(folder.join(format!("kiam-{number}.name")), &image.name)?;
    }
    let file = sandbox.scratch().join("payload.img");
    make_disk(&root, &file, 0, false)?;
    std::fs::remove_dir_all(&root).context("cannot remove the payload's folder")?;
    Ok(file)
}

/// The components, which are one program.
fn programs(folder: &Path) -> Result<()> {
    let components = components()?;
    std::fs::copy(components.join("kubelet"), folder.join("kubernetes"))
        .context("cannot copy the components")?;
    for name in ["kubelet", "kube-proxy"] {
        symlink("kubernetes", folder.join(name))?;
    }
    Ok(())
}

/// A certificate and a kubeconfig, with the paths that they have on a node.
fn user(plane: &ControlPlane, root: &Path, tls: &Path, name: &str, leaf: &Leaf<'_>) -> Result<()> {
    plane.issue(&tls.join(name), leaf)?;
    let there = Path::new(MOUNT).join("tls").join(name);
    let pem = PemFiles {
        cert: there.join("tls.crt"),
        key: there.join("tls.key"),
        ca: there.join("ca.crt"),
    };
    let text = plane.kubeconfig_with(&pem);
    std::fs::write(root.join(format!("{name}.conf")), text)
        .with_context(|| format!("cannot write {name}.conf"))
}

/// Makes the image of the pods' program: a Docker archive of one layer.
fn pod_image(sandbox: &Sandbox, archive: &Path) -> Result<()> {
    let work = sandbox.folder("pod-image")?;
    let root = work.join("root/bin");
    std::fs::create_dir_all(&root)?;
    let source = work.join("pod.c");
    std::fs::write(&source, POD_PROGRAM)?;
    let program = root.join(NAMES[0]);
    let mut compile = Command::new("cc");
    compile.args(["-static", "-Os", "-s", "-o"]).arg(&program);
    exec(compile.arg(&source)).context("cannot compile the pods' program")?;
    for name in &NAMES[1..] {
        symlink(NAMES[0], root.join(name))?;
    }
    let layer = work.join("layer.tar");
    tar(&layer, &work.join("root"), ".")?;
    let digest = |bytes: &[u8]| -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let config = json!({
        "architecture": Architecture::native()?.debian(),
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Entrypoint": ["/bin/pause"] },
        "rootfs": {
            "type": "layers",
            "diff_ids": [format!("sha256:{}", digest(&std::fs::read(&layer)?))],
        },
    })
    .to_string();
    let name = format!("{}.json", digest(config.as_bytes()));
    std::fs::write(work.join(&name), config)?;
    let manifest = json!([
        { "Config": name, "RepoTags": [POD_IMAGE], "Layers": ["layer.tar"] },
    ]);
    std::fs::write(work.join("manifest.json"), manifest.to_string())?;
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(archive).arg("-C").arg(&work);
    exec(pack.args(["manifest.json", "layer.tar", &name]))?;
    std::fs::remove_dir_all(&work).context("cannot remove the folder of the pods' image")
}

fn tar(file: &Path, folder: &Path, what: &str) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    command.arg(file).arg("-C").arg(folder).arg(what);
    exec(&mut command).map(drop)
}
