//! The flags of the agent that runs in this container. `kubectl exec` starts a command beside the
//! agent, with the environment of the container but without the agent's flags.
//!
//! The agent is process 1 of its container, and every process may read its command line. Its flags
//! are defaults for those of the command, so that `doctor` checks, and `cleanup` removes, what this
//! agent uses.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

const PROGRAM: &str = "kiam-agent";
const FIRST_PROCESS: &str = "/proc/1/cmdline";

/// Flags that a command shares with the agent: the name in the command, and in the agent.
const SHARED: &[(&str, &[(&str, &str)])] = &[
    (
        "doctor",
        &[
            ("host", "host"),
            ("port", "port"),
            ("pods-cgroup", "pods-cgroup"),
            ("bpffs", "bpffs"),
            ("redirect", "redirect"),
            ("server-address", "server-address"),
            ("cert", "cert"),
            ("key", "key"),
            ("ca", "ca"),
        ],
    ),
    ("cleanup", &[("bpffs", "bpffs")]),
    ("status", &[("address", "prometheus-listen-addr")]),
    ("health", &[("address", "prometheus-listen-addr")]),
];

/// Flags of the agent that runs in this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningAgent {
    flags: Vec<(String, OsString)>,
}

impl RunningAgent {
    /// Returns the agent that is process 1 of this process's namespace, if there is one.
    pub fn find() -> Option<Self> {
        // The command line of another process may be missing or hidden: then no agent is known.
        let line = std::fs::read(Path::new(FIRST_PROCESS)).ok()?;
        Self::parse(&line)
    }

    /// Parses a command line whose words each end with a zero byte.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line
            .split(|byte| *byte == 0)
            .map(|word| OsString::from_vec(word.to_vec()));
        let program = words.next()?;
        if Path::new(&program).file_name() != Some(OsStr::new(PROGRAM)) {
            return None;
        }
        let mut words = words.peekable();
        // A command of the program, such as `kiam-agent doctor` in a container of its own.
        if !words.peek()?.as_bytes().starts_with(b"-") {
            return None;
        }
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            let Some((name, value)) = split(&word) else {
                continue;
            };
            let value = match value {
                Some(value) => value,
                // The value of the flag, or the next flag after one without a value.
                None => match words.peek() {
                    Some(next) if !next.as_bytes().starts_with(b"-") => next.clone(),
                    _ => continue,
                },
            };
            flags.push((name, value));
        }
        Some(Self { flags })
    }

    /// Returns the value of a flag, if it was given.
    fn flag(&self, name: &str) -> Option<&OsStr> {
        let found = self.flags.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_os_str())
    }

    /// Returns the agent's flags that the command shares, as words.
    fn shared_flags(&self, command: &OsStr) -> Vec<(&'static str, OsString)> {
        let shared = SHARED
            .iter()
            .find(|(known, _)| OsStr::new(known) == command);
        let shared = shared.map_or(&[][..], |(_, shared)| shared);
        let given = shared.iter().filter_map(|(own, agents)| {
            let value = self.flag(agents)?;
            let mut word = OsString::from(format!("--{own}="));
            word.push(reachable(own, value));
            Some((*own, word))
        });
        given.collect()
    }

    /// Returns the flags that `doctor` takes from the agent, as one line.
    pub(crate) fn summary(&self) -> String {
        let words = self.shared_flags(OsStr::new("doctor"));
        let words: Vec<_> = words
            .iter()
            .map(|(_, word)| word.to_string_lossy())
            .collect();
        words.join(" ")
    }
}

/// Replaces an address of all interfaces by that of loopback.
fn reachable(name: &str, value: &OsStr) -> OsString {
    let text = value.to_string_lossy();
    let port = if name == "address" {
        text.strip_prefix("0.0.0.0:")
            .or_else(|| text.strip_prefix("[::]:"))
    } else {
        None
    };
    port.map_or_else(
        || value.to_owned(),
        |port| format!("127.0.0.1:{port}").into(),
    )
}

/// Splits `--name=value` or `--name` into name and value.
fn split(word: &OsStr) -> Option<(String, Option<OsString>)> {
    let word = word.as_bytes().strip_prefix(b"--")?;
    let (name, value) = match word.iter().position(|byte| *byte == b'=') {
        Some(at) => (
            &word[..at],
            Some(OsString::from_vec(word[at + 1..].to_vec())),
        ),
        None => (word, None),
    };
    Some((String::from_utf8_lossy(name).into_owned(), value))
}

/// Returns the command line with those flags of `agent` that the command shares and that are not
/// given.
pub fn complete(words: Vec<OsString>, agent: Option<&RunningAgent>) -> Vec<OsString> {
    let (Some(agent), Some(command)) = (agent, words.get(1)) else {
        return words;
    };
    let given: HashSet<String> = words
        .iter()
        .filter_map(|word| split(word).map(|(name, _)| name))
        .collect();
    let defaults = agent.shared_flags(command);
    let mut completed = words;
    completed.extend(
        defaults
            .into_iter()
            .filter(|(name, _)| !given.contains(*name))
            .map(|(_, word)| word),
    );
    completed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};

    /// The flags that the chart gives the agent.
    const CHART: &[&str] = &[
        "/kiam-agent",
        "--port=8282",
        "--server-address=kiam-server:9610",
        "--cert=/etc/kiam/tls/tls.crt",
        "--bpffs=/run/kiam/bpf",
        "--json-log",
        "--pods-cgroup",
        "/run/kiam/cgroup/kubepods.slice",
        "--prometheus-listen-addr=0.0.0.0:9620",
        "--level=info",
    ];

    fn line(words: &[&str]) -> Vec<u8> {
        words
            .iter()
            .flat_map(|word| [word.as_bytes(), b"\0"].concat())
            .collect()
    }

    fn completed(words: &[&str]) -> Vec<String> {
        let agent = RunningAgent::parse(&line(CHART));
        let words = words.iter().map(OsString::from).collect();
        let words = complete(words, agent.as_ref());
        words
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_command_uses_the_flags_of_its_agent() {
        assert_eq!(
            completed(&["kiam-agent", "doctor", "--json"]),
            [
                "kiam-agent",
                "doctor",
                "--json",
                "--port=8282",
                "--pods-cgroup=/run/kiam/cgroup/kubepods.slice",
                "--bpffs=/run/kiam/bpf",
                "--server-address=kiam-server:9610",
                "--cert=/etc/kiam/tls/tls.crt",
            ]
        );
        assert_eq!(
            completed(&["kiam-agent", "cleanup"]),
            ["kiam-agent", "cleanup", "--bpffs=/run/kiam/bpf"]
        );
        assert_eq!(
            completed(&["kiam-agent", "health", "--ready"]),
            [
                "kiam-agent",
                "health",
                "--ready",
                "--address=127.0.0.1:9620"
            ]
        );
    }

    #[test]
    fn flags_of_the_command_take_precedence() {
        let words = ["kiam-agent", "cleanup", "--bpffs=/elsewhere"];
        assert_eq!(completed(&words), words);
        let words = ["kiam-agent", "cleanup", "--bpffs", "/elsewhere"];
        assert_eq!(completed(&words), words);
    }

    #[test]
    fn other_commands_are_unchanged() {
        for words in [
            &["kiam-agent"][..],
            &["kiam-agent", "--bpffs=/x"],
            &["kiam-agent", "attach"],
            &["kiam-agent", "completions", "bash"],
        ] {
            assert_eq!(completed(words), words);
        }
    }

    #[test]
    fn only_a_running_agent_counts() {
        for words in [
            &["/sbin/init"][..],
            &["/pause"],
            &["/kiam-server", "--bind=0.0.0.0:9610"],
            &["/kiam-agent", "doctor", "--bpffs=/x"],
            &["/kiam-agent"],
            &[],
        ] {
            assert_eq!(RunningAgent::parse(&line(words)), None, "{words:?}");
        }
    }

    #[test]
    fn every_shared_flag_exists_in_both() {
        let program = Cli::command();
        for (command, shared) in SHARED {
            let found = program.find_subcommand(command).unwrap();
            for (own, agents) in *shared {
                let known = |program: &clap::Command, name: &str| {
                    program
                        .get_arguments()
                        .any(|arg| arg.get_long() == Some(name))
                };
                assert!(known(found, own), "{command} has no --{own}");
                assert!(known(&program, agents), "the agent has no --{agents}");
            }
        }
        let words = completed(&["kiam-agent", "doctor"]);
        let parsed = Cli::try_parse_from(words).unwrap();
        assert!(matches!(parsed, Cli::Command(Command::Doctor(_))));
    }
}
