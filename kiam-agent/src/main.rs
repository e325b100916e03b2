//! The agent's process: flags, logs, start, wait, drain.

<<<<<<< HEAD
use std::path::Path;
=======
use std::io::Write as _;
>>>>>>> 7362ee4 (agent: a doctor that tells whether a node can be guarded, and what to do)
use std::process::ExitCode;

use kiam_agent::app::{self, StartError};
use kiam_agent::args::{Args, Cli, Command};
<<<<<<< HEAD
use kiam_agent::iptables::{self, IptablesError};
use kiam_agent::kernel;
=======
use kiam_agent::commands;
>>>>>>> 7362ee4 (agent: a doctor that tells whether a node can be guarded, and what to do)
use kiam_common::telemetry;
use tokio::signal::unix::{SignalKind, signal};

/// Bad configuration, as sysexits.h calls it.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    match Cli::try_parse_from(std::env::args_os()) {
        Ok(Cli::Run(args)) => serve(&args),
        Ok(Cli::Command(command)) => obey(&command),
        Err(error) => {
            drop(error.print());
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            ExitCode::from(code)
        }
    }
}

fn obey(command: &Command) -> ExitCode {
<<<<<<< HEAD
    match command {
        Command::Cleanup(args) => cleanup(&args.bpffs),
    }
}

/// Does all of it that can be done, and says what that was.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is where a command answers"
)]
#[tokio::main(flavor = "current_thread")]
async fn cleanup(bpffs: &Path) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let mut report = |outcome: Result<String, String>| match outcome {
        Ok(done) => println!("{done}"),
        Err(error) => {
            eprintln!("{error}");
            code = ExitCode::FAILURE;
        }
    };
    let folder = bpffs.display();
    report(match kernel::cleanup(bpffs) {
        Ok(removed) if removed == kernel::Removed::default() => {
            Ok(format!("nothing of kiam's is in {folder}"))
        }
        Ok(kernel::Removed { links, maps }) => Ok(format!(
            "removed {links} programs and {maps} maps from {folder}; pods reach the node's metadata service now"
        )),
        Err(error) => Err(error.to_string()),
    });
    report(match iptables::cleanup().await {
        Ok(0) | Err(IptablesError::NoProgram) => {
            Ok("nothing of kiam's is in the firewall".to_owned())
        }
        Ok(tables) => Ok(format!(
            "removed kiam's rules from {tables} tables of the firewall"
        )),
        Err(error) => Err(error.to_string()),
    });
    code
=======
    let done = match command {
        Command::Cleanup(args) => commands::cleanup(args),
        Command::Doctor(args) => commands::doctor(args),
    };
    done.unwrap_or_else(|error| {
        drop(writeln!(std::io::stderr(), "{error:#}"));
        ExitCode::FAILURE
    })
>>>>>>> 7362ee4 (agent: a doctor that tells whether a node can be guarded, and what to do)
}

fn serve(args: &Args) -> ExitCode {
    if let Err(error) = telemetry::init(args.telemetry.json_log, &args.telemetry.level) {
        drop(clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{error}\n")).print());
        return ExitCode::from(EX_USAGE);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            match error.downcast_ref::<StartError>() {
                Some(start) if start.is_usage() => ExitCode::from(EX_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[tokio::main]
async fn run(args: &Args) -> anyhow::Result<()> {
    // One provider for all of the process; it fails only if there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let bound = app::build(args).await?;
    bound
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    Ok(())
}
