//! The agent's process: flags, logs, start, wait, drain.

use std::io::Write as _;
use std::process::ExitCode;

use kiam_agent::app::{self, StartError};
use kiam_agent::args::{self, Args, Cli, Command, RunningAgent};
use kiam_agent::commands;
use kiam_common::causes::causes;
use kiam_common::{limits, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// Bad configuration, as sysexits.h calls it.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let words = std::env::args_os().collect();
    let words = args::complete(words, RunningAgent::find().as_ref());
    match Cli::try_parse_from(words) {
        Ok(Cli::Run(args)) => serve(&args),
        Ok(Cli::Command(command)) => obey(&command),
        Ok(Cli::Print(text)) => print(&text),
        Err(error) => {
            drop(error.print());
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            ExitCode::from(code)
        }
    }
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn obey(command: &Command) -> ExitCode {
    let done = match command {
        Command::Attach(args) => commands::attach(args),
        Command::Cleanup(args) => commands::cleanup(args),
        Command::Doctor(args) => commands::doctor(args),
        Command::Status(args) => commands::status(args),
        Command::Health(args) => commands::health(args),
    };
    done.unwrap_or_else(|error| {
        drop(writeln!(std::io::stderr(), "{}", causes(error.as_ref())));
        ExitCode::FAILURE
    })
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
    tracing::debug!(files = limits::raise_open_files(), "may be open at once");
    limits::leave_no_core_file();
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
