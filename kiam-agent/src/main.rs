//! The program around [`kiam_agent::app`].

use std::process::ExitCode;

use kiam_agent::app;
use kiam_agent::args::{self, Args, Command, RunningAgent};
use kiam_agent::commands;
use kiam_common::flags::TelemetryFlags;
use kiam_common::program::{self, Interrupt, Program, ProgramError};

struct Agent;

impl Program for Agent {
    const NAME: &'static str = "kiam-agent";
    type Args = Args;
    type Command = Command;

    fn telemetry(args: &Args) -> &TelemetryFlags {
        &args.telemetry
    }

    async fn run(args: Args, interrupt: Interrupt) -> Result<(), ProgramError> {
        let bound = app::build(&args)
            .await
            .map_err(|error| ProgramError::start(error.is_usage(), error))?;
        let ended = bound.run(interrupt.received()).await;
        ended.map_err(ProgramError::failure)
    }

    fn run_command(command: Command) -> Result<ExitCode, ProgramError> {
        let ended = match &command {
            Command::Attach(args) => commands::attach(args),
            Command::Cleanup(args) => commands::cleanup(args),
            Command::Doctor(args) => commands::doctor(args),
            Command::Status(args) => commands::status(args),
            Command::Health(args) => commands::health(args),
            Command::Metrics => commands::metrics(),
        };
        ended.map_err(ProgramError::failure)
    }
}

fn main() -> ExitCode {
    let arguments = std::env::args_os().collect();
    program::main::<Agent>(args::complete(arguments, RunningAgent::find().as_ref()))
}
