//! The `main` of both programs: parse the command line, set up the process, run, report.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success, or stopped by SIGTERM or SIGINT |
//! | 1 | failure: a busy port, a task that died, a command that found a problem |
//! | 64 | unusable configuration: a flag, or a file that a flag names (`EX_USAGE` of sysexits.h) |
//!
//! A command may define further codes.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Cli;
use crate::error_chain::error_chain;
use crate::flags::TelemetryFlags;
use crate::{limits, telemetry};

/// Exit code for an unusable configuration.
const EX_USAGE: u8 = 64;

/// A program that serves until it is stopped, and that has commands beside that.
pub trait Program {
    /// The prefix of errors on standard error.
    const NAME: &'static str;
    /// The flags of the program when it serves.
    type Args: CommandFactory + FromArgMatches;
    /// The program's own commands.
    type Command: Subcommand;

    /// Returns the flags that configure logging.
    fn telemetry(args: &Self::Args) -> &TelemetryFlags;

    /// Serves until `interrupt` resolves.
    fn run(
        args: Self::Args,
        interrupt: Interrupt,
    ) -> impl Future<Output = Result<(), ProgramError>>;

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When the command could not do its work.
    fn run_command(command: Self::Command) -> Result<ExitCode, ProgramError>;
}

/// An error that ends a program, and the exit code that it ends with.
#[derive(Debug)]
pub struct ProgramError {
    code: u8,
    source: Box<dyn Error + Send + Sync>,
}

impl ProgramError {
    /// An error with an exit code of its own.
    pub fn new(code: u8, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            code,
            source: source.into(),
        }
    }

    /// An error that other flags or files would avoid.
    pub fn usage(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(EX_USAGE, source)
    }

    /// An error of the start, which other flags or files would avoid or not.
    pub fn start(is_usage: bool, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        if is_usage {
            Self::usage(source)
        } else {
            Self::failure(source)
        }
    }

    /// Any other error.
    pub fn failure(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(1, source)
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&error_chain(self.source.as_ref()))
    }
}

/// SIGTERM or SIGINT, from the moment that it is made.
#[derive(Debug)]
pub struct Interrupt {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupt {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves once the process is asked to stop.
    pub async fn received(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs the program that `arguments` describe, and returns its exit code.
pub fn main<P: Program>(arguments: impl IntoIterator<Item: Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::<P::Args, P::Command>::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are errors to clap, and go to standard output.
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    // Fails only where a provider is installed already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match cli {
        Cli::Print(text) => print(&text),
        Cli::Command(command) => P::run_command(command).unwrap_or_else(|error| {
            drop(writeln!(io::stderr(), "{}: {error}", P::NAME));
            ExitCode::from(error.code)
        }),
        Cli::Run(args) => {
            let flags = P::telemetry(&args);
            if let Err(error) = telemetry::init(flags.json_log, &flags.level) {
                drop(writeln!(io::stderr(), "{}: {error}", P::NAME));
                return ExitCode::from(EX_USAGE);
            }
            match serve::<P>(*args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    if tracing::enabled!(tracing::Level::ERROR) {
                        tracing::error!("{error}");
                    } else {
                        drop(writeln!(io::stderr(), "{}: {error}", P::NAME));
                    }
                    ExitCode::from(error.code)
                }
            }
        }
    }
}

/// Writes a command's output, and returns the exit code for that.
pub fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs a command that waits for I/O.
///
/// # Errors
/// Those of the command, or when no runtime can be started.
pub fn block_on<T>(work: impl Future<Output = Result<T, ProgramError>>) -> Result<T, ProgramError> {
    runtime()?.block_on(work)
}

fn serve<P: Program>(args: P::Args) -> Result<(), ProgramError> {
    let files = limits::raise_open_files();
    tracing::debug!(files, "set the limit of open files");
    limits::disable_core_files();
    runtime()?.block_on(async {
        let interrupt = Interrupt::new().map_err(ProgramError::failure)?;
        P::run(args, interrupt).await
    })
}

fn runtime() -> Result<Runtime, ProgramError> {
    let built = Builder::new_multi_thread().enable_all().build();
    built.map_err(ProgramError::failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, clap::Parser)]
    #[command(name = "it")]
    struct Args {
        #[command(flatten)]
        telemetry: TelemetryFlags,
    }

    #[derive(Debug, Clone, clap::Subcommand)]
    enum Command {
        /// Succeeds
        Succeed,
        /// Fails
        Fail,
        /// Rejects a file
        Reject,
    }

    struct It;

    impl Program for It {
        const NAME: &'static str = "it";
        type Args = Args;
        type Command = Command;

        fn telemetry(args: &Args) -> &TelemetryFlags {
            &args.telemetry
        }

        async fn run(_args: Args, _interrupt: Interrupt) -> Result<(), ProgramError> {
            Ok(())
        }

        fn run_command(command: Command) -> Result<ExitCode, ProgramError> {
            match command {
                Command::Succeed => Ok(ExitCode::SUCCESS),
                Command::Fail => Err(ProgramError::failure("it failed")),
                Command::Reject => block_on(async { Err(ProgramError::usage("no such file")) }),
            }
        }
    }

    #[test]
    fn exit_codes_tell_configuration_from_other_failures() {
        for (arguments, code) in [
            (&["it", "succeed"][..], 0),
            (&["it", "--help"], 0),
            (&["it", "fail"], 1),
            (&["it", "reject"], 64),
            (&["it", "--unknown"], 64),
            (&["it", "--level=a=b=c"], 64),
        ] {
            let ended = main::<It>(arguments);
            assert_eq!(ended, ExitCode::from(code), "{arguments:?}");
        }
    }
}
