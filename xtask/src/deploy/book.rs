//! The pages of `docs` as a book, and their Terraform as HCL.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toolchain::{CargoTool, Plan, exec, go::GoTool, workspace};

const MDBOOK: CargoTool = CargoTool {
    name: "mdbook",
    version: "0.5.2",
    why: "makes a book of the pages in docs",
    seconds: 150,
    flags: &["--no-default-features"],
};

const HCLFMT: GoTool = GoTool {
    name: "hclfmt",
    package: "github.com/hashicorp/hcl/v2/cmd/hclfmt",
    version: "2.24.0",
    why: "reads the pages' Terraform",
    seconds: 10,
};
/// Pages with Terraform in them.
const TERRAFORM: [&str; 1] = ["docs/iam.md"];

/// Adds missing parts to the plan.
pub(crate) fn plan(plan: &mut Plan) {
    MDBOOK.plan(plan);
    HCLFMT.plan(plan);
}

/// The pages' Terraform is HCL, formatted as usual.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn terraform() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for page in TERRAFORM {
        let text = std::fs::read_to_string(workspace().join(page))?;
        let mut blocks = 0;
        for block in text.split("\n```hcl\n").skip(1) {
            let (block, _rest) = block.split_once("\n```").context("a block has an end")?;
            let file = scratch.path().join(format!("{blocks}.tf"));
            let block = format!("{block}\n");
            std::fs::write(&file, &block)?;
            let mut format = HCLFMT.command()?;
            let formatted =
                exec(format.arg(&file)).with_context(|| format!("{page}: its Terraform"))?;
            ensure!(
                formatted.trim_end() == block.trim_end(),
                "{page}: formatted, its Terraform is\n{formatted}"
            );
            blocks += 1;
        }
        ensure!(blocks > 0, "{page} has no Terraform");
        println!("book: the Terraform in {page} is HCL, formatted as usual");
    }
    Ok(())
}

/// Makes it, in `target/book`.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn make() -> Result<()> {
    let root = workspace();
    let mut build = Command::new(MDBOOK.path()?);
    exec(build.arg("build").arg(root.join("docs")))?;
    let first = root.join("target/book/getting-started.html");
    ensure!(first.is_file(), "mdbook made no {}", first.display());
    println!("book: {}", first.display());
    Ok(())
}
