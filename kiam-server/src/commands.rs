//! The commands of the program.

mod explain;
mod health;

use std::process::ExitCode;

use kiam_common::program::{self, ProgramError};

use crate::app;
use crate::args::Command;
pub use explain::{ExplainError, Explanation, Step, Verdict, explain};
pub use health::{HealthError, health};

/// The exit code of `explain` if it could not find out whether the pod gets its credentials.
const UNKNOWN: u8 = 2;

/// Runs a command.
///
/// # Errors
/// When the command could not do its work.
pub async fn run(command: Command) -> Result<ExitCode, ProgramError> {
    match command {
        Command::Health(args) => health(*args)
            .await
            .map(|()| ExitCode::SUCCESS)
            .map_err(ProgramError::failure),
        Command::Explain(args) => {
            let explained = explain(*args).await;
            let (text, granted) = explained.map_err(|error| ProgramError::new(UNKNOWN, error))?;
            let printed = program::print(text.as_bytes());
            Ok(if granted { printed } else { ExitCode::FAILURE })
        }
        Command::Metrics => {
            let described = app::descriptions().map_err(ProgramError::failure)?;
            let text = serde_json::to_vec_pretty(&described).map_err(ProgramError::failure)?;
            Ok(program::print(&text))
        }
    }
}
