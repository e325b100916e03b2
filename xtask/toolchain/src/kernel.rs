//! The command `build-ebpf`: the kernel programs, as one object.
//!
//! They are built for `bpfel-unknown-none`, which no toolchain ships a standard library for: it
//! takes one with the library's source, and a nightly's `-Z build-std`. Cargo is run with every
//! setting explicit, so that the same crate on the same toolchain gives the same bytes. Nothing
//! is installed here: missing parts are named, with the commands that install them.

mod toolchain;
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace;

pub use toolchain::{
    LINKER_VERSION, LLVM, Missing, NIGHTLY, Toolchain, find_toolchain, linker_root,
};
pub use tools::plan;

/// Flags of `cargo xtask build-ebpf`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {}

/// The kernel programs' object.
#[derive(Debug, Clone)]
pub struct BuiltObject {
    /// Its path.
    pub path: PathBuf,
}

const TARGET: &str = "bpfel-unknown-none";
const CRATE: &str = "kiam-ebpf";
const PROFILE: &str = "bpf";

/// Builds the object.
///
/// # Errors
/// Fails when no toolchain can build it, or it does not compile.
pub fn run(_args: &Args) -> anyhow::Result<BuiltObject> {
    build(&workspace(), CRATE)
}

/// Builds the object of a source under another name.
///
/// # Errors
/// Like [`run`].
pub fn build(source: &Path, name: &str) -> anyhow::Result<BuiltObject> {
    let toolchain = find_toolchain()?;
    let out = workspace().join("target/kiam-ebpf");
    let build = out.join("build");
    let mut command = cargo(&toolchain, source, &build)?;
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", toolchain.cargo.display()))?;
    ensure!(
        status.success(),
        "the kernel programs do not compile ({status})"
    );
    let built = build.join(TARGET).join(PROFILE).join(CRATE);
    let object = out.join(format!("{name}.o"));
    replace(&built, &object)?;
    eprintln_object(&object, &toolchain)?;
    Ok(BuiltObject { path: object })
}

fn cargo(toolchain: &Toolchain, root: &Path, target: &Path) -> anyhow::Result<Command> {
    let home = std::env::var("CARGO_HOME").ok().map(PathBuf::from);
    let home = match home {
        Some(home) => home,
        None => std::env::home_dir()
            .context("there is no home folder")?
            .join(".cargo"),
    };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // No path of this machine in the object.
        format!("--remap-path-prefix={}=kiam", root.display()),
        format!("--remap-path-prefix={}=cargo", home.display()),
        format!("--remap-path-prefix={}=rust", toolchain.sysroot.display()),
    ];
    let mut command = Command::new(&toolchain.cargo);
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            CRATE,
            "--bin",
            CRATE,
        ])
        .args([
            "--profile",
            PROFILE,
            "--target",
            TARGET,
            "-Zbuild-std=core",
            "--target-dir",
        ])
        .arg(target)
        .current_dir(root);
    // Cargo runs xtask with settings of its own, which are of another toolchain.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let of_cargo = name.starts_with("CARGO")
            && name != "CARGO_HOME"
            && !name.starts_with("CARGO_HTTP")
            && !name.starts_with("CARGO_NET");
        if of_cargo || name.starts_with("RUSTUP_TOOLCHAIN") || name.starts_with("RUSTC") {
            command.env_remove(&*name);
        }
    }
    let mut path = vec![toolchain.linker_folder.clone()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    command
        .env("PATH", std::env::join_paths(path)?)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    Ok(command)
}

/// Puts the new object in its place, unless it is the same: builds of the agent depend on it.
fn replace(built: &Path, object: &Path) -> anyhow::Result<()> {
    let new = std::fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if std::fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let beside = object.with_extension("o.new");
    std::fs::write(&beside, new).with_context(|| format!("cannot write {}", beside.display()))?;
    std::fs::rename(&beside, object).with_context(|| format!("cannot write {}", object.display()))
}

#[expect(
    clippy::print_stderr,
    reason = "reports what was built, and by which toolchain"
)]
fn eprintln_object(object: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(object)?.len();
    eprintln!(
        "kernel programs: {} ({bytes} bytes), by {toolchain}",
        object.display()
    );
    Ok(())
}
