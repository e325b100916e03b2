//! The command `test`.

/// Names the folder of kiam's programs, for the sandbox tests.
pub const PROGRAMS: &str = "KIAM_TEST_PROGRAMS";

/// Flags of `cargo xtask test`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// When it fails.
pub fn run(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
