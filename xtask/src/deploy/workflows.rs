//! `.github`: the workflows, read by actionlint and zizmor.

use std::process::Command;

use anyhow::Result;
use toolchain::{Plan, ZIZMOR, exec, go::GoTool, workspace};

const ACTIONLINT: GoTool = GoTool {
    name: "actionlint",
    package: "github.com/rhysd/actionlint/cmd/actionlint",
    version: "1.7.12",
    why: "reads the workflows of .github",
    seconds: 15,
};

/// Adds missing parts to the plan.
pub(crate) fn plan(plan: &mut Plan) -> Result<()> {
    ACTIONLINT.plan(plan);
    ZIZMOR.plan(plan)
}

/// Neither may find anything; zizmor runs with its pedantic rules.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn check() -> Result<()> {
    let root = workspace();
    let mut actionlint = ACTIONLINT.command()?;
    // Shell and Python in them are short; whether those tools are here must not matter.
    actionlint.args(["-no-color", "-shellcheck=", "-pyflakes="]);
    let folder = root.join(".github/workflows");
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        actionlint.arg(entry?.path());
        files += 1;
    }
    exec(&mut actionlint)?;
    let mut zizmor = Command::new(ZIZMOR.program("zizmor"));
    zizmor.args(["--offline", "--persona=pedantic", "--no-progress"]);
    exec(zizmor.arg(root.join(".github")))?;
    println!("workflows: {files} files, and nothing found by actionlint and zizmor");
    Ok(())
}
