//! Tools that the development commands need, installed when they are missing; and the build of the
//! kernel programs.
//!
//! ```text
//! plan          missing parts: listed, confirmed, installed
//! apt           Debian packages of this machine
//! debian        Debian packages of other releases and architectures, beside this machine's own
//! cache         folders in the user's cache, each filled once
//! cargo_tool    programs of crates.io
//! go            Go, and programs of Go modules
//! helm, kubectl these two, from their Go modules
//! npm           JavaScript packages
//! python        Python packages
//! kernel        the kernel programs and their tools
//! architecture  processor architectures, by everybody's names for them
//! command       programs that are run for their output
//! page          parts of the pages in docs that commands generate
//! ```
//!
//! It knows no other package of the workspace.

mod apt;
mod architecture;
mod cache;
mod cargo_tool;
mod command;
pub mod debian;
pub mod go;
pub mod helm;
pub mod kernel;
pub mod kubectl;
pub mod npm;
pub mod page;
mod plan;
mod python;

use std::path::{Path, PathBuf};

pub use apt::Package;
pub use architecture::Architecture;
pub use cache::{Cache, Log, fingerprint};
pub use cargo_tool::CargoTool;
pub use command::{cargo, exec, find_program, find_programs, words};
pub use plan::{Consent, Plan, Step, prepare};
pub use python::{AWS, MOTO, Python, ZIZMOR};

/// Root folder of the repository.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
