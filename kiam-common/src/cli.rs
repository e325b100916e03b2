//! A command line whose default is to serve, as in kiam, with subcommands beside that: those of the
//! program, and those that describe its command line.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{CommandFactory, FromArgMatches, Subcommand};
use clap_complete::Shell;

/// A parsed command line.
#[derive(Debug, Clone)]
pub enum Cli<Run, Command> {
    /// Serve, with these flags.
    Run(Box<Run>),
    /// Run a command of the program.
    Command(Command),
    /// Print this text.
    Print(Vec<u8>),
}

/// Returns the version, with the commit of a release build.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("KIAM_COMMIT").filter(|commit| !commit.is_empty());
        let commit = commit.unwrap_or("built from a working copy");
        format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}

/// Commands of every program.
#[derive(Debug, Clone, clap::Subcommand)]
enum Common {
    /// Print a shell completion script
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },

    /// Print the manual page of the program, or of one of its commands, in roff
    Man {
        /// The command
        command: Option<String>,
    },
}

impl Common {
    /// Generates the requested text.
    fn text(self, mut program: clap::Command) -> Result<Vec<u8>, clap::Error> {
        let name = program.get_name().to_owned();
        let mut text = Vec::new();
        match self {
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut program, name, &mut text);
            }
            Self::Man { command } => {
                // Sets the full names of the subcommands.
                program.build();
                if let Some(wanted) = command {
                    let unknown = clap::Error::raw(
                        clap::error::ErrorKind::InvalidSubcommand,
                        format!("{name} has no command {wanted}\n"),
                    );
                    let found = program.find_subcommand(&wanted).cloned();
                    let full = format!("{name}-{wanted}");
                    program = found.ok_or(unknown)?.name(full).version(version());
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
    /// Returns the clap definition of the whole command line.
    pub fn command() -> clap::Command {
        let run = Run::command();
        let about = run.get_about().cloned();
        Common::augment_subcommands(Command::augment_subcommands(run))
            // `augment_subcommands` replaces the description with that of `Command`.
            .about(about.unwrap_or_default())
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_required(false)
            .arg_required_else_help(false)
    }

    /// Parses the command line.
    ///
    /// # Errors
    /// When it is invalid, or requests help or the version.
    pub fn try_parse_from(
        arguments: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
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

    /// Serves.
    #[derive(Debug, Clone, clap::Parser)]
    #[command(name = "it", version = version())]
    struct Run {
        /// How fast
        #[arg(long, env = "IT_SPEED")]
        speed: u32,
    }

    #[derive(Debug, Clone, PartialEq, clap::Subcommand)]
    enum Own {
        /// Stop
        Stop,
    }

    fn parse(arguments: &[&str]) -> Result<Cli<Run, Own>, clap::Error> {
        Cli::try_parse_from(["it"].iter().chain(arguments))
    }

    fn printed(arguments: &[&str]) -> String {
        match parse(arguments) {
            Ok(Cli::Print(text)) => String::from_utf8(text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_serve_and_subcommands_do_not_mix_with_them() {
        assert!(matches!(parse(&["--speed=3"]), Ok(Cli::Run(run)) if run.speed == 3));
        assert!(matches!(parse(&["stop"]), Ok(Cli::Command(Own::Stop))));
        assert!(parse(&["--speed=3", "stop"]).is_err());
        let text = parse(&["--version"]).unwrap_err().to_string();
        assert!(text.starts_with(&format!("it {}", version())), "{text}");
        assert!(version().contains('('), "a commit, or a working copy");
    }

    #[test]
    fn completions_contain_flags_and_commands() {
        for shell in ["bash", "zsh", "fish"] {
            let text = printed(&["completions", shell]);
            assert!(text.contains("speed") && text.contains("stop"), "{text}");
        }
    }

    #[test]
    fn manual_pages_contain_flags_and_their_environment_variables() {
        let text = printed(&["man"]);
        for part in [".TH it 1", "IT_SPEED", "How fast"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(printed(&["man", "stop"]).contains(".TH it-stop 1"));
        let error = parse(&["man", "start"]).unwrap_err().to_string();
        assert!(error.contains("no command start"), "{error}");
    }
}
