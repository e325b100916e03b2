//! The program around [`kiam_server::app`].

use std::process::ExitCode;

use kiam_common::flags::TelemetryFlags;
use kiam_common::program::{self, Interrupt, Program, ProgramError};
use kiam_server::args::{Args, Command};
use kiam_server::{app, commands};

/// A start reads every object of the cluster and keeps a few short strings of each. The free lists
/// of glibc's allocator degrade under that: a start takes three times as long with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Server;

impl Program for Server {
    const NAME: &'static str = "kiam-server";
    type Args = Args;
    type Command = Command;

    fn telemetry(args: &Args) -> &TelemetryFlags {
        &args.telemetry
    }

    async fn run(args: Args, interrupt: Interrupt) -> Result<(), ProgramError> {
        let bound = app::build(args)
            .await
            .map_err(|error| ProgramError::start(error.is_usage(), error))?;
        let ended = bound.run(interrupt.received()).await;
        ended.map_err(ProgramError::failure)
    }

    fn run_command(command: Command) -> Result<ExitCode, ProgramError> {
        program::block_on(commands::run(command))
    }
}

fn main() -> ExitCode {
    program::main::<Server>(std::env::args_os())
}
