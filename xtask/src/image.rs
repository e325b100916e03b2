//! `cargo xtask image`: the container image, built without a daemon and without a registry.
//!
//! `deploy/docker/Dockerfile` is shared with `docker build`: its first stage runs this
//! command for the root file system; here, its last stage gets that root.

mod layout;
mod root;
mod sbom;
mod system;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toolchain::{Architecture, Consent, exec, kernel, prepare, workspace};

use layout::{Labels, Layout};
use system::System;
use testbed::image;
use testbed::kiam::ImagePrograms;

/// Limit for the unpacked image.
const MOST_BYTES: u64 = 40 << 20;
const VERSION: &str = env!("CARGO_PKG_VERSION");
const SBOM: &str = "usr/share/doc/kiam/sbom.cdx.json";

/// Flags of `cargo xtask image`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Processor architecture (default: that of this machine)
    #[arg(long, value_enum)]
    architecture: Option<Architecture>,

    /// Make only the root file system, in this folder, for the Dockerfile
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// Makes the image.
///
/// # Errors
/// Fails when it cannot be made, or a check of it fails.
pub fn run(args: &Args) -> Result<()> {
    let architecture = match args.architecture {
        Some(architecture) => architecture,
        None => Architecture::native()?,
    };
    prepare(args.consent, |plan| {
        kernel::plan(plan);
        system::plan(architecture, plan);
        sbom::plan(plan);
        if args.root.is_none() {
            plan.program(
                "buildah",
                "buildah",
                "makes an image of the root file system",
            );
            plan.program("umoci", "umoci", "unpacks the image, to check it");
        }
        Ok(())
    })?;
    let system = System::get(architecture)?;
    match &args.root {
        Some(folder) => fill(folder, architecture, &system, &commit()).map(drop),
        None => build(architecture, &system),
    }
}

/// Makes it, below `target/image`, and checks it.
#[expect(clippy::print_stdout, reason = "for the terminal")]
fn build(architecture: Architecture, system: &System) -> Result<()> {
    let folder = image::folder(architecture);
    std::fs::create_dir_all(&folder)?;
    let root = image::root(&folder);
    let (commit, seconds) = (commit(), commit_seconds());
    let bytes = fill(&root, architecture, system, &commit)?;
    let labels = Labels {
        architecture,
        version: VERSION,
        commit: &commit,
        seconds: &seconds,
    };
    let layout = Layout::new(&folder);
    layout.build(&folder.join("context"), &labels)?;
    layout.check(&root, &labels)?;
    let unpacked = layout.unpacked().join("rootfs");
    ensure!(
        unpacked.join("usr/bin/sh").symlink_metadata().is_err(),
        "there is a shell in the image"
    );
    for program in ["/kiam-agent", "/kiam-server"] {
        let output = system.run_in(&unpacked, program, "--version")?;
        ensure!(
            output.contains(&commit),
            "{program} --version prints {output}, not {commit}"
        );
        println!("image: {} runs in it", output.trim());
    }
    let mut iptables = vec!["/usr/sbin/ip6tables-legacy"];
    // It queries the kernel first, with a socket family that QEMU does not translate.
    if architecture.is_native() {
        iptables.push("/usr/sbin/iptables-nft");
    }
    for program in iptables {
        println!(
            "image: {} runs in it",
            system.run_in(&unpacked, program, "--version")?.trim()
        );
    }
    let archive = image::archive(architecture);
    let packed = layout.archive(&archive, &seconds)?;
    println!(
        "image: {:.1} MiB, and {:.1} MiB packed: {}",
        mebibytes(bytes),
        mebibytes(packed),
        archive.display()
    );
    Ok(())
}

/// Fills a folder with the root file system. Returns its size.
fn fill(folder: &Path, architecture: Architecture, system: &System, commit: &str) -> Result<u64> {
    let programs = ImagePrograms::build(architecture, commit)?;
    let root = root::make(folder, &programs, system)?;
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
        ensure!(mode & 0o6000 == 0, "{shown} gives privileges to its caller");
        ensure!(mode & 0o002 == 0, "all users can write to {shown}");
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

/// Commit that the image is built from, with a mark if files differ from it.
///
/// Without a repository, the value of `KIAM_COMMIT`.
#[must_use]
pub fn commit() -> String {
    let given = std::env::var("KIAM_COMMIT").ok();
    given
        .filter(|commit| !commit.is_empty())
        .unwrap_or_else(|| {
            let output = git(&[
                "describe",
                "--always",
                "--abbrev=12",
                "--dirty",
                "--exclude=*",
            ]);
            output.unwrap_or_else(|_no_repository| "unknown".to_owned())
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
    let output = exec(command.current_dir(workspace()).args(arguments))?;
    Ok(output.trim().to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
