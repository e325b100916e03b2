//! What builds the kernel programs: a Rust toolchain with its library's source, and bpf-linker.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Package, Plan, Step, cargo, find_program};
use crate::build_ebpf::{LINKER_VERSION, LLVM, find_toolchain, linker_root};
use crate::sandbox::exec;

const RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const RUST_WHY: &str = "Rust with its library's source: builds the kernel programs";
const LLVM_PACKAGE: &str = "llvm-22-dev";

/// Adds what is missing.
pub(super) fn plan(plan: &mut Plan) {
    let Err(missing) = find_toolchain() else {
        return;
    };
    if missing.toolchain {
        for name in RUST {
            plan.package(Package {
                name,
                why: RUST_WHY,
            });
        }
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
