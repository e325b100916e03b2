//! A toolchain that can build the kernel programs, and the parts to install where there is none.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of bpf-linker that is used.
pub const LINKER_VERSION: &str = "0.13.0";
/// The version of LLVM that bpf-linker is built with. It reads what rustc wrote, so rustc's must
/// not be newer.
pub const LLVM: u32 = 22;

/// A rustup toolchain whose LLVM is not newer. Any other such nightly will do.
pub const NIGHTLY: &str = "nightly-2026-05-19";

/// A toolchain that can build the kernel programs.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Folder of its library.
    pub sysroot: PathBuf,
    /// Its version, as it prints it.
    pub version: String,
    /// The folder that bpf-linker is in.
    pub linker_folder: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} and bpf-linker in {}",
            self.version,
            self.linker_folder.display()
        )
    }
}

/// Parts that are missing to build the kernel programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// There is no toolchain with the standard library's source.
    pub toolchain: bool,
    /// There is no bpf-linker.
    pub linker: bool,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "the kernel programs cannot be built on this machine yet; missing:"
        )?;
        if self.toolchain {
            writeln!(
                f,
                "
  a Rust toolchain (LLVM {LLVM} or older) with the source of its standard library. Either
    Debian:          apt-get install rustc-web cargo-web rust-web-src
    Ubuntu, others:  rustup toolchain install {NIGHTLY} --profile minimal --component rust-src"
            )?;
        }
        if self.linker {
            writeln!(
                f,
                "
  bpf-linker {LINKER_VERSION}
    Debian, Ubuntu:  apt-get install llvm-{LLVM}-dev
    then:            LLVM_PREFIX=/usr/lib/llvm-{LLVM} cargo install bpf-linker --version {LINKER_VERSION} \\
                       --no-default-features --features llvm-{LLVM} --locked \\
                       --root {}",
                linker_root().display()
            )?;
        }
        write!(
            f,
            "\n`cargo xtask demo --yes` and `cargo xtask test` do all of this by themselves."
        )
    }
}

/// Folder in the user's cache into which these commands install bpf-linker.
pub fn linker_root() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    cache
        .unwrap_or_default()
        .join("kiam")
        .join(format!("bpf-linker-{LINKER_VERSION}"))
}

/// Finds a toolchain: a rustup nightly with `rust-src`, else the distribution's.
///
/// # Errors
/// Lists the missing parts, with the commands that install them.
pub fn find_toolchain() -> Result<Toolchain, Missing> {
    let linker = find_linker();
    let rust = nightly().or_else(distribution);
    match (linker, rust) {
        (Some(linker_folder), Some(rust)) => Ok(Toolchain {
            linker_folder,
            ..rust
        }),
        (linker, rust) => Err(Missing {
            toolchain: rust.is_none(),
            linker: linker.is_none(),
        }),
    }
}

fn find_linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![linker_root().join("bin")];
    folders.extend(std::env::split_paths(&path));
    folders.into_iter().find(|folder| {
        // One that was cut short while it was built, or lacks its LLVM, does not even print this.
        folder.join("bpf-linker").is_file()
            && stdout_of(folder.join("bpf-linker"), &["--version"]).is_some()
    })
}

/// The rustup nightlies that have the standard library's source.
fn nightly() -> Option<Toolchain> {
    let listed = stdout_of("rustup", &["toolchain", "list"])?;
    let names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| name.starts_with("nightly"))
        .find_map(|name| {
            let cargo = stdout_of("rustup", &["which", "--toolchain", name, "cargo"])?;
            let rustc = stdout_of("rustup", &["which", "--toolchain", name, "rustc"])?;
            toolchain(Path::new(cargo.trim()), Path::new(rustc.trim()))
        })
}

/// Debian's and Ubuntu's: `rustc-web` and its sources, which stable builds of `rustc` can be too.
fn distribution() -> Option<Toolchain> {
    toolchain(Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"))
}

fn toolchain(cargo: &Path, rustc: &Path) -> Option<Toolchain> {
    if !cargo.is_file() {
        return None;
    }
    let sysroot = PathBuf::from(stdout_of(rustc, &["--print", "sysroot"])?.trim());
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
    {
        return None;
    }
    let details = stdout_of(rustc, &["-vV"])?;
    let llvm = details
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    let major: u32 = llvm.split('.').next()?.parse().ok()?;
    if major > LLVM {
        return None;
    }
    let version = details.lines().next()?.to_owned();
    let (cargo, rustc) = (cargo.to_owned(), rustc.to_owned());
    Some(Toolchain {
        cargo,
        rustc,
        sysroot,
        version,
        linker_folder: PathBuf::new(),
    })
}

/// Output of a program, if it is there and succeeds. Rustup's proxies must not inherit the name of
/// a toolchain.
fn stdout_of(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_are_listed_with_commands() {
        let both = Missing {
            toolchain: true,
            linker: true,
        }
        .to_string();
        for part in [
            "apt-get install rustc-web",
            "rustup toolchain install nightly",
            "cargo install bpf-linker",
        ] {
            assert!(both.contains(part), "{both}");
        }
        let linker = Missing {
            toolchain: false,
            linker: true,
        }
        .to_string();
        assert!(!linker.contains("rustup toolchain"), "{linker}");
    }
}
