//! `cargo xtask image`: the container image, built without a daemon and without a registry.
//!
//! `deploy/docker/Dockerfile` is what both this and `docker build` follow: its first stage runs
//! this command for the root file system, and its last one is given that root here.

mod layout;
mod root;
pub(crate) mod sbom;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf::workspace;
use crate::kiam::Programs;
use crate::sandbox::exec;
use crate::setup::{self, Consent, Need, find_program};
use layout::{Labels, Layout};

/// All of it, unpacked.
const MOST_BYTES: u64 = 40 << 20;
const VERSION: &str = env!("CARGO_PKG_VERSION");
const SBOM: &str = "usr/share/doc/kiam/sbom.cdx.json";

/// Flags of `cargo xtask image`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Make only the root file system, in this folder: for the Dockerfile
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// An image that was made and checked.
#[derive(Debug, Clone)]
pub struct Image {
    /// All of it, as an OCI archive.
    pub archive: PathBuf,
}

/// Makes the image.
///
/// # Errors
/// When it cannot be made, or is not as it should be.
pub fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.root {
        setup::prepare(&[Need::Kernel, Need::ImageRoot], args.consent)?;
        return fill(folder, &commit()).map(drop);
    }
    setup::prepare(&[Need::Kernel, Need::ImageRoot, Need::Image], args.consent)?;
    build()
}

/// Makes it, below `target/image`, and checks it.
#[expect(clippy::print_stdout, reason = "for whoever reads what was made")]
fn build() -> Result<()> {
    let folder = workspace().join("target/image");
    std::fs::create_dir_all(&folder)?;
    // As the Dockerfile's first stage has it.
    let context = folder.join("context");
    let root = context.join("image");
    let (commit, seconds) = (commit(), commit_seconds());
    let bytes = fill(&root, &commit)?;
    let labels = Labels {
        version: VERSION,
        commit: &commit,
        seconds: &seconds,
    };
    let layout = Layout::new(&folder);
    layout.build(&context, &labels)?;
    layout.check(&root, &labels)?;
    let unpacked = layout.unpacked().join("rootfs");
    let no_shell = "/bin/sh";
    ensure!(
        enter(&unpacked, no_shell, "-c").is_err(),
        "there is a shell in the image"
    );
    for program in ["/kiam-agent", "/kiam-server"] {
        let said = enter(&unpacked, program, "--version")?;
        ensure!(
            said.contains(&commit),
            "{program} says {said}, not {commit}"
        );
        println!("image: {} runs in it", said.trim());
    }
    for program in ["/usr/sbin/iptables-nft", "/usr/sbin/ip6tables-legacy"] {
        println!(
            "image: {} runs in it",
            enter(&unpacked, program, "--version")?.trim()
        );
    }
    let archive = archive();
    let packed = layout.archive(&archive, &seconds)?;
    println!(
        "image: {:.1} MiB, and {:.1} MiB packed: {}",
        mebibytes(bytes),
        mebibytes(packed),
        archive.display()
    );
    Ok(())
}

/// The image that was made last.
///
/// # Errors
/// When none was.
pub fn made() -> Result<Image> {
    let archive = archive();
    ensure!(
        archive.is_file(),
        "there is no image; make one by `cargo xtask image`"
    );
    Ok(Image { archive })
}

fn archive() -> PathBuf {
    let name = format!("kiam-{VERSION}-linux-{}.oci.tar", architecture());
    workspace().join("target/image").join(name)
}

/// Fills a folder with the root file system. Returns its size.
fn fill(folder: &Path, commit: &str) -> Result<u64> {
    let programs = Programs::build_for_image(commit)?;
    let root = root::make(folder, &programs)?;
    let sbom = sbom::make(&root, VERSION)?;
    let file = folder.join(SBOM);
    std::fs::create_dir_all(file.parent().context("it is in a folder")?)?;
    std::fs::write(&file, serde_json::to_string(&sbom)?)?;
    let mut bytes = 0;
    check(&root.path, &mut bytes)?;
    ensure!(
        bytes <= MOST_BYTES,
        "the image has {:.1} MiB, and may have {:.1}",
        mebibytes(bytes),
        mebibytes(MOST_BYTES)
    );
    Ok(bytes)
}

/// Nobody gets rights by running it, nothing can be written to by everybody, no script needs a
/// shell.
fn check(folder: &Path, bytes: &mut u64) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        if metadata.is_symlink() {
            continue;
        }
        let mode = metadata.permissions().mode();
        let shown = path.display();
        ensure!(
            mode & 0o6000 == 0,
            "{shown} gives rights to whoever runs it"
        );
        ensure!(mode & 0o002 == 0, "everybody can write to {shown}");
        if metadata.is_dir() {
            check(&path, bytes)?;
        } else {
            *bytes += metadata.size();
            if mode & 0o111 != 0 {
                let is_program = std::fs::read(&path)?.starts_with(b"\x7fELF");
                ensure!(is_program, "{shown} is a script");
            }
        }
    }
    Ok(())
}

/// Runs a program with this root file system and no other.
fn enter(root: &Path, program: &str, argument: &str) -> Result<String> {
    let chroot = find_program("chroot").context("there is no chroot in PATH")?;
    let mut command = Command::new(chroot);
    exec(command.env_clear().arg(root).args([program, argument]))
}

/// What the image is built from: the commit, and whether more was changed.
///
/// `KIAM_COMMIT`, where the repository is not at hand.
#[must_use]
pub fn commit() -> String {
    let given = std::env::var("KIAM_COMMIT").ok();
    given
        .filter(|commit| !commit.is_empty())
        .unwrap_or_else(|| {
            let said = git(&[
                "describe",
                "--always",
                "--abbrev=12",
                "--dirty",
                "--exclude=*",
            ]);
            said.unwrap_or_else(|_no_repository| "unknown".to_owned())
        })
}

fn commit_seconds() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    given.unwrap_or_else(|| {
        git(&["log", "-1", "--format=%ct"]).unwrap_or_else(|_no_repository| "0".to_owned())
    })
}

fn git(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    let said = exec(command.current_dir(workspace()).args(arguments))?;
    Ok(said.trim().to_owned())
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
