//! A program that runs when it is told nothing else, as kiam's did, and has commands beside that.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Subcommand};

/// What a program is to do.
#[derive(Debug, Clone)]
pub enum Cli<Run, Command> {
    /// To run, with these flags.
    Run(Box<Run>),
    /// Something else, and to end.
    Command(Command),
}

impl<Run, Command> Cli<Run, Command>
where
    Run: CommandFactory + FromArgMatches,
    Command: Subcommand,
{
    /// The command line, as clap knows it.
    #[must_use]
    pub fn command() -> clap::Command {
        let run = Run::command();
        let about = run.get_about().cloned();
        Command::augment_subcommands(run)
            // Commands' own description would stand in its place.
            .about(about.unwrap_or_default())
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_required(false)
            .arg_required_else_help(false)
    }

    /// Reads the command line.
    ///
    /// # Errors
    /// When it is no command line of the program's, or asks for help.
    pub fn try_parse_from(
        words: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        if matches.subcommand_name().is_some() {
            Command::from_arg_matches(&matches).map(Self::Command)
        } else {
            Run::from_arg_matches(&matches).map(|run| Self::Run(Box::new(run)))
        }
    }
}
