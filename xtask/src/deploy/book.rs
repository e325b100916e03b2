//! The pages of `docs` as a book.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::build_ebpf::workspace;
use crate::sandbox::exec;
use crate::setup::{CargoTool, Plan};

const MDBOOK: CargoTool = CargoTool {
    name: "mdbook",
    version: "0.5.2",
    why: "makes a book of the pages in docs",
    seconds: 150,
    flags: &["--no-default-features"],
};

/// Adds what is missing.
pub(crate) fn plan(plan: &mut Plan) {
    MDBOOK.plan(plan);
}

/// Makes it, in `target/book`.
#[expect(clippy::print_stdout, reason = "for whoever reads what was made")]
pub(super) fn make() -> Result<()> {
    let root = workspace();
    let mut build = Command::new(MDBOOK.path()?);
    exec(build.arg("build").arg(root.join("docs")))?;
    let first = root.join("target/book/getting-started.html");
    ensure!(first.is_file(), "mdbook made no {}", first.display());
    println!("book: {}", first.display());
    Ok(())
}
