//! A program that runs when it is told nothing else, as kiam's did, and has commands beside that:
//! its own, and those that tell of its command line.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{CommandFactory, FromArgMatches, Subcommand};
use clap_complete::Shell;

/// What a program is to do.
#[derive(Debug, Clone)]
pub enum Cli<Run, Command> {
    /// To run, with these flags.
    Run(Box<Run>),
    /// Something else, and to end.
    Command(Command),
    /// To print this, and to end.
    Print(Vec<u8>),
}

/// The version, with the commit that releases are built from.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("KIAM_COMMIT").filter(|commit| !commit.is_empty());
        let commit = commit.unwrap_or("built from a working copy");
        format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}

/// Commands that every program has.
#[derive(Debug, Clone, clap::Subcommand)]
enum Common {
    /// Prints what a shell needs to complete the command line
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },

    /// Prints the manual page, for man(1); with a command's name, that command's
    Man {
        /// A command of the program
        command: Option<String>,
    },
}

impl Common {
    /// What is asked for, of this program.
    fn text(self, mut program: clap::Command) -> Result<Vec<u8>, clap::Error> {
        let name = program.get_name().to_owned();
        let mut text = Vec::new();
        match self {
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut program, name, &mut text);
            }
            Self::Man { command } => {
                // Gives the commands their full names.
                program.build();
                if let Some(wanted) = command {
                    let no_such = clap::Error::raw(
                        clap::error::ErrorKind::InvalidSubcommand,
                        format!("{name} has no command {wanted}\n"),
                    );
                    let found = program.find_subcommand(&wanted).cloned();
                    let full = format!("{name}-{wanted}");
                    program = found.ok_or(no_such)?.name(full).version(version());
                }
                let written = clap_mangen::Man::new(program).render(&mut text);
                written.map_err(|error| {
                    clap::Error::raw(clap::error::ErrorKind::Io, format!("{error}\n"))
                })?;
            }
        }
        Ok(text)
    }
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
        Common::augment_subcommands(Command::augment_subcommands(run))
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
        if let Ok(common) = Common::from_arg_matches(&matches) {
            return common.text(Self::command()).map(Self::Print);
        }
        if matches.subcommand_name().is_some() {
            Command::from_arg_matches(&matches).map(Self::Command)
        } else {
            Run::from_arg_matches(&matches).map(|run| Self::Run(Box::new(run)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs, it is said.
    #[derive(Debug, Clone, clap::Parser)]
    #[command(name = "it", version = version())]
    struct Run {
        /// How fast
        #[arg(long, env = "IT_SPEED")]
        speed: u32,
    }

    #[derive(Debug, Clone, PartialEq, clap::Subcommand)]
    enum Own {
        /// Stops
        Stop,
    }

    fn parse(words: &[&str]) -> Result<Cli<Run, Own>, clap::Error> {
        Cli::try_parse_from(["it"].iter().chain(words))
    }

    fn printed(words: &[&str]) -> String {
        match parse(words) {
            Ok(Cli::Print(text)) => String::from_utf8(text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_runs_or_obeys_its_own_commands() {
        assert!(matches!(parse(&["--speed=3"]), Ok(Cli::Run(run)) if run.speed == 3));
        assert!(matches!(parse(&["stop"]), Ok(Cli::Command(Own::Stop))));
        assert!(parse(&["--speed=3", "stop"]).is_err());
        let said = parse(&["--version"]).unwrap_err().to_string();
        assert!(said.starts_with(&format!("it {}", version())), "{said}");
        assert!(version().contains('('), "a commit, or that there is none");
    }

    #[test]
    fn completions_know_flags_and_commands() {
        for shell in ["bash", "zsh", "fish"] {
            let text = printed(&["completions", shell]);
            assert!(text.contains("speed") && text.contains("stop"), "{text}");
        }
    }

    #[test]
    fn manual_pages_name_flags_and_their_environment() {
        let text = printed(&["man"]);
        for part in [".TH it 1", "IT_SPEED", "How fast"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(printed(&["man", "stop"]).contains(".TH it-stop 1"));
        let error = parse(&["man", "start"]).unwrap_err().to_string();
        assert!(error.contains("no command start"), "{error}");
    }
}
