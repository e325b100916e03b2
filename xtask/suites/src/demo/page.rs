//! Output of the demo.

#![expect(clippy::print_stdout, reason = "a page for the terminal")]

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::path::Path;

use tokio::time::Instant;

use super::pods::{Connection, DemoPod, DemoPods, Obstacle};
use testbed::probe::Outcome;
use testbed::sandbox::Pod;

const WIDTH: usize = 96;
/// Width of the labels' column.
const LABEL: usize = 13;

/// Prints the page, in colours where they can be seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    colours: bool,
}

#[derive(Debug, Clone, Copy)]
enum Paint {
    Bold,
    Dim,
    Green,
    Red,
    Yellow,
    Cyan,
}

/// Time since an instant.
pub(super) fn took(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

impl Page {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self {
            colours: wanted && std::io::stdout().is_terminal(),
        }
    }

    fn paint(self, paint: Paint, text: impl Display) -> String {
        if !self.colours {
            return text.to_string();
        }
        let code = match paint {
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Green => 32,
            Paint::Yellow => 33,
            Paint::Cyan => 36,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    pub(super) fn title(self) {
        let name = self.paint(Paint::Bold, "kiam");
        println!("\n  {name}: every pod its own AWS credentials, and nothing else\n");
    }

    pub(super) fn heading(self, text: &str) {
        println!("\n  {}\n", self.paint(Paint::Bold, text));
    }

    pub(super) fn command(self, text: &str) {
        println!("      $ {}", self.paint(Paint::Cyan, text));
    }

    /// A part of the set-up.
    pub(super) fn set(self, what: &str, place: impl Display, does: &str) {
        let mark = self.paint(Paint::Green, "●");
        let does = self.paint(Paint::Dim, does);
        println!("  {mark} {what:<12} {:<22} {does}", place.to_string());
    }

    pub(super) fn pod(self, demo_pod: &DemoPod) {
        let mark = if demo_pod.is_permitted() {
            self.paint(Paint::Green, "✓")
        } else {
            self.paint(Paint::Red, "✗")
        };
        println!("\n  {mark} {}", self.paint(Paint::Bold, demo_pod.name()));
        self.line("requests", demo_pod.wants());
        let may_have = demo_pod.may_have();
        let nothing = "nothing: its namespace has no annotation for that";
        self.line("may have", may_have.as_deref().unwrap_or(nothing));
    }

    pub(super) fn kernel(self, pod: &Pod, seen: &Connection) {
        let Connection { peer, cgroup, uid } = seen;
        let connection = format!("{peer} → 169.254.169.254:80, from cgroup {cgroup}");
        self.line("kernel saw", &connection);
        self.line("", &tail(pod));
        self.line("identified", &format!("pod {uid}"));
    }

    pub(super) fn got(self, arn: &str) {
        self.line("got", &self.paint(Paint::Green, arn));
    }

    pub(super) fn wrong(self, what: &str) {
        self.line("got", &self.paint(Paint::Red, what));
    }

    pub(super) fn refused(self, status: u16, text: &str) {
        self.line(
            "received",
            &self.paint(Paint::Red, format!("HTTP {status}")),
        );
        for line in wrap(text, WIDTH - LABEL) {
            self.line("", &self.paint(Paint::Yellow, line));
        }
    }

    pub(super) fn cli_error(self, text: &str) {
        self.line("CLI error", text);
    }

    pub(super) fn fix(self, obstacle: &Obstacle) {
        let Obstacle { at, line, lacks } = obstacle;
        self.line("fix it in", &format!("cluster.yaml, line {at}: {line}"));
        if let Some(lacks) = lacks {
            self.line("by adding", &format!("annotations: {{ {lacks} }}"));
        }
    }

    pub(super) fn outcome(self, who: &str, outcome: &Outcome, good: bool) {
        let mark = if good {
            self.paint(Paint::Green, "✓")
        } else {
            self.paint(Paint::Red, "✗")
        };
        let what = match outcome {
            Outcome::Answer(answer) => format!("HTTP {}: {}", answer.status, answer.body.trim()),
            Outcome::Failure(why) => why.clone(),
        };
        println!("  {mark} {who}");
        for line in wrap(&what, WIDTH) {
            println!("      {}", self.paint(Paint::Dim, line));
        }
    }

    pub(super) fn traffic(self, connections: u64, bytes: u64) {
        let (mark, paint) = match connections {
            0 => ("✓", Paint::Green),
            _ => ("✗", Paint::Red),
        };
        let seen = format!("saw {connections} connections and {bytes} bytes");
        println!("  {} {}", self.paint(paint, mark), self.paint(paint, seen));
    }

    pub(super) fn end(self, begin: Instant) {
        println!(
            "\n  {}\n",
            self.paint(Paint::Dim, format!("{} in all", took(begin)))
        );
    }

    pub(super) fn show_commands(self, pods: &DemoPods, scratch: &Path) {
        let scratch = scratch.display();
        self.heading("Running until Ctrl-C. In another terminal, as root:");
        for demo_pod in pods.all() {
            let what = format!("in the pod {}", demo_pod.name());
            self.try_this(
                &what,
                &format!(
                    "{scratch}/{} aws sts get-caller-identity",
                    demo_pod.script()
                ),
            );
        }
        let first = pods.all().first().map(DemoPod::script).unwrap_or_default();
        self.try_this("a shell in a pod", &format!("{scratch}/{first}"));
        self.try_this(
            "change what is permitted, or a pod's role; ask again",
            &format!("$EDITOR {scratch}/cluster/cluster.yaml"),
        );
        self.try_this(
            "the logs of both programs",
            &format!("tail -F {scratch}/kiam-*.log"),
        );
        let agent = format!("{scratch}/node curl -s http://127.0.0.1:9612/metrics");
        self.try_this("the agent's metrics", &agent);
    }

    pub(super) fn goodbye(self) {
        println!("\n  {}", self.paint(Paint::Dim, "removing everything"));
    }

    fn try_this(self, what: &str, command: &str) {
        println!("    {}", self.paint(Paint::Dim, format!("# {what}")));
        println!("    {}", self.paint(Paint::Cyan, command));
    }

    fn line(self, label: &str, text: &str) {
        println!(
            "    {} {text}",
            self.paint(Paint::Dim, format!("{label:<LABEL$}"))
        );
    }
}

/// Returns the end of a pod's cgroup, which distinguishes it.
fn tail(pod: &Pod) -> String {
    let path = pod.place().cgroup().path();
    let names: Vec<_> = path
        .iter()
        .rev()
        .take(2)
        .map(|name| name.to_string_lossy())
        .collect();
    match names.as_slice() {
        [container, pod] => {
            let from = pod.find("-pod").unwrap_or_default();
            format!("…{}/{}", &pod[from..], shortened(container))
        }
        _ => path.display().to_string(),
    }
}

/// `cri-containerd-0123456789ab….scope`
fn shortened(container: &str) -> String {
    let Some((runtime, id)) = container.rsplit_once('-') else {
        return container.to_owned();
    };
    let (id, suffix) = id.split_once('.').unwrap_or((id, ""));
    format!("{runtime}-{}….{suffix}", id.get(..8).unwrap_or(id))
}

/// Breaks a text into lines at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                *line += " ";
                *line += word;
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_broken_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(
            wrap("a-word-that-is-too-long it", 5),
            ["a-word-that-is-too-long", "it"]
        );
        assert!(wrap("", 5).is_empty());
    }

    #[test]
    fn a_container_is_shortened_to_a_recognizable_name() {
        let id = "0123456789abcdef".repeat(4);
        let name = format!("cri-containerd-{id}.scope");
        assert_eq!(shortened(&name), "cri-containerd-01234567….scope");
    }
}
