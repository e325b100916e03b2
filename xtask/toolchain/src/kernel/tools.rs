//! Tools that build the kernel programs: a Rust toolchain with its library's source, and
//! bpf-linker.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{LINKER_VERSION, LLVM, NIGHTLY, find_toolchain, linker_root};
use crate::exec;
use crate::{Package, Plan, Step, cargo, find_program};

const RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const RUST_WHY: &str = "Rust with its library's source: builds the kernel programs";
const LLVM_PACKAGE: &str = "llvm-22-dev";

/// Adds missing parts to the plan.
pub fn plan(plan: &mut Plan) {
    let Err(missing) = find_toolchain() else {
        return;
    };
    if missing.toolchain {
        rust(plan);
    }
    if missing.linker {
        if !llvm().join("include").is_dir() {
            let why = "the LLVM that bpf-linker is built with";
            plan.package(Package {
                name: LLVM_PACKAGE,
                why,
            });
        }
        let root = linker_root();
        plan.step(Step {
            what: format!(
                "bpf-linker {LINKER_VERSION}, built by cargo into {}",
                root.display()
            ),
            why: "links the kernel programs",
            about: Some(Duration::from_secs(150)),
            run: Box::new(move || install(&root)),
        });
    }
}

/// Debian's own, which rustup's stable Rust stays the default beside; elsewhere rustup's nightly.
fn rust(plan: &mut Plan) {
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&system) && find_program("rustup").is_some() {
        plan.step(Step {
            what: format!("Rust {NIGHTLY} with its library's source, by rustup"),
            why: "builds the kernel programs",
            about: Some(Duration::from_secs(60)),
            run: Box::new(|| {
                let mut command = Command::new("rustup");
                command
                    .args(["toolchain", "install", NIGHTLY, "--no-self-update"])
                    .args(["--profile", "minimal", "--component", "rust-src"]);
                exec(&mut command).map(drop)
            }),
        });
        return;
    }
    for name in RUST {
        plan.package(Package {
            name,
            why: RUST_WHY,
        });
    }
}

/// Returns whether the content of `/etc/os-release` is Debian's.
fn is_debian(system: &str) -> bool {
    system.lines().any(|line| line.trim() == "ID=debian")
}

fn llvm() -> std::path::PathBuf {
    format!("/usr/lib/llvm-{LLVM}").into()
}

/// Cargo itself installs all of it or nothing.
fn install(root: &Path) -> Result<()> {
    if find_program("cc").is_none() {
        bail!("there is no C compiler (Debian's package gcc)");
    }
    let features = format!("llvm-{LLVM}");
    let mut command = cargo();
    command
        .args(["install", "bpf-linker", "--quiet", "--locked", "--force"])
        .args(["--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", &features])
        .arg("--root")
        .arg(root)
        .env("LLVM_PREFIX", llvm())
        // Its build is its own: this workspace's settings are not for it.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir("/");
    exec(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_of_debian_lack_some_packages() {
        assert!(is_debian("NAME=x\nID=debian\n"));
        assert!(!is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!is_debian(""));
    }
}
