//! The agent's process: flags, logs, start, wait, drain.

use std::process::ExitCode;

use clap::Parser as _;
use kiam_agent::app::{self, StartError};
use kiam_agent::args::Args;
use kiam_common::telemetry;
use tokio::signal::unix::{SignalKind, signal};

/// Bad configuration, as sysexits.h calls it.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            drop(error.print());
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            return ExitCode::from(code);
        }
    };
    if let Err(error) = telemetry::init(args.telemetry.json_log, &args.telemetry.level) {
        drop(clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{error}\n")).print());
        return ExitCode::from(EX_USAGE);
    }
    match run(&args) {
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
