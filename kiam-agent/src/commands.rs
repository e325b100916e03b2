//! The agent's commands other than to run: each answers on the terminal, and ends.
#![expect(
    clippy::print_stdout,
    reason = "the terminal is where a command answers"
)]

use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::{CleanupArgs, DoctorArgs};
use crate::doctor::{self, State};
use crate::kernel::{self, Removed};

/// Removes what agents leave in the kernel.
///
/// # Errors
/// When it cannot be removed.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let bpffs = args.bpffs.display();
    let removed = kernel::cleanup(&args.bpffs)?;
    if removed == Removed::default() {
        println!("nothing of kiam's is in {bpffs}");
    } else {
        let Removed { links, maps } = removed;
        println!(
            "removed {links} programs and {maps} maps from {bpffs}; pods reach the node's metadata service now"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells whether the node can be guarded. The exit code is 1 if not.
///
/// # Errors
/// When the report cannot be made.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    // One provider for all of the process; it fails only if there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let report = runtime.block_on(doctor::examine(args));
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(match report.state {
        State::Ok | State::Warn => ExitCode::SUCCESS,
        State::Fail => ExitCode::FAILURE,
    })
}
