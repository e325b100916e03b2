//! The agent's commands other than to run: each answers on the terminal, and ends.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is where a command answers"
)]

use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::{CleanupArgs, DoctorArgs};
use crate::doctor::{self, State};
use crate::iptables::{self, IptablesError};
use crate::kernel::{self, Removed};
use crate::route_guard;

/// Removes what agents leave in the kernel: all of it that can be removed. The exit code is 1 if
/// something could not.
///
/// # Errors
/// When it cannot begin.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let folder = args.bpffs.display();
    let pins = match kernel::cleanup(&args.bpffs) {
        Ok(removed) if removed == Removed::default() => {
            Ok(format!("nothing of kiam's is in {folder}"))
        }
        Ok(Removed { links, maps }) => Ok(format!(
            "removed {links} programs and {maps} maps from {folder}; pods reach the node's metadata service now"
        )),
        Err(error) => Err(error.to_string()),
    };
    let rules = match runtime()?.block_on(iptables::cleanup()) {
        Ok(0) | Err(IptablesError::NoProgram) => {
            Ok("nothing of kiam's is in the firewall".to_owned())
        }
        Ok(tables) => Ok(format!(
            "removed kiam's rules from {tables} tables of the firewall"
        )),
        Err(error) => Err(error.to_string()),
    };
    let routing = match route_guard::cleanup() {
        Ok(0) => Ok("nothing of kiam's is in the routing".to_owned()),
        Ok(removed) => Ok(format!(
            "removed {removed} of kiam's routing rules and routes"
        )),
        Err(error) => Err(error.to_string()),
    };
    let mut code = ExitCode::SUCCESS;
    for outcome in [pins, rules, routing] {
        match outcome {
            Ok(done) => println!("{done}"),
            Err(error) => {
                eprintln!("{error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
}

/// Tells whether the node can be guarded. The exit code is 1 if not.
///
/// # Errors
/// When the report cannot be made.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    // One provider for all of the process; it fails only if there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let report = runtime()?.block_on(doctor::examine(args));
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
