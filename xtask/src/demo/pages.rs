//! What the demo shows, and how.
#![expect(clippy::print_stdout, reason = "a command for the terminal")]

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{LISTING, Part};
use crate::kiam::{Agent, METADATA_PORT};
use crate::probe::{Answer, METADATA_SERVICE};
use crate::sandbox::{Finished, Pod};
use crate::setup::AWS;
use crate::stage::{Stage, StageNode};

const LOG_LIMIT: Duration = Duration::from_secs(5);
const WIDTH: usize = 96;

/// The AWS CLI, when it has ended.
pub(super) struct Caller {
    pub(super) took: Duration,
    pub(super) ended: Finished,
}

/// What the agent logs of callers.
pub(super) struct Witness<'a> {
    agent: &'a Agent,
    mark: usize,
}

/// What the kernel said of one.
pub(super) struct Seen {
    peer: String,
    cgroup: String,
}

impl<'a> Witness<'a> {
    /// Listens from now on.
    pub(super) fn new(agent: &'a Agent) -> Self {
        let mark = agent.program().mark();
        Self { agent, mark }
    }

    /// The kernel's word on a pod, as the agent logged it.
    pub(super) fn of(&self, pod: &Pod) -> Result<Seen> {
        let uid = format!("pod.uid={}", pod.uid());
        let field = |line: &str, name: &str| {
            let value = line.split_once(name)?.1;
            Some(value.split_whitespace().next()?.to_owned())
        };
        let program = self.agent.program();
        program.wait_for_after(self.mark, &uid, LOG_LIMIT, |line| {
            line.contains(&uid).then_some(())?;
            Some(Seen {
                peer: field(line, "peer=")?,
                cgroup: field(line, "cgroup=")?,
            })
        })
    }
}

/// Prints, in colour where there is a terminal.
pub(super) struct Page {
    colour: bool,
}

impl Page {
    pub(super) fn for_this_terminal() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("33", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn heading(&self, text: &str) {
        println!("\n{}\n", self.paint("1", text));
    }

    fn row(&self, what: &str, text: &str) {
        println!("    {} {text}", self.dim(&format!("{what:<16}")));
    }

    pub(super) fn opening(&self, node: &StageNode, stage: &Stage, took: Duration) {
        self.heading("A node with three pods, kiam-server and kiam-agent");
        println!("  made of network namespaces and cgroups on this machine, in {took:.1?}:\n");
        let agent = format!("{}:{METADATA_PORT}", node.node().ip());
        self.row("kiam-agent", &format!("{agent} on {}", node.node().name()));
        self.row(
            "its programs on",
            &node.node().kubepods().path().display().to_string(),
        );
        self.row(
            "kiam-server",
            &format!("reads {}", stage.objects().folder().display()),
        );
        self.row(
            "STS",
            &format!("a double at {}, which checks signatures", stage.sts().url()),
        );
    }

    /// One pod: who asked, what the kernel saw, what it got.
    pub(super) fn caller(&self, part: &Part, pod: &Pod, seen: &Seen, caller: &Caller) {
        let Part {
            namespace,
            name,
            role,
            permitted,
        } = part;
        self.heading(&format!(
            "{namespace}/{name} runs: aws sts get-caller-identity"
        ));
        self.row("pod annotation", &format!("iam.amazonaws.com/role: {role}"));
        let permits = permitted.map_or_else(
            || "no iam.amazonaws.com/permitted".to_owned(),
            |expression| format!("iam.amazonaws.com/permitted: {expression}"),
        );
        self.row("its namespace", &permits);
        self.row(
            "the kernel saw",
            &format!("a connect to 169.254.169.254:80, from {}", seen.peer),
        );
        self.row(
            "",
            &format!("made in cgroup {}, which is pod {}", seen.cgroup, pod.uid()),
        );
        match caller.identity() {
            Ok(arn) => {
                self.row("STS says it is", &self.good(&arn));
                self.row(
                    "",
                    &self.dim(&format!("in {:.1?}, Python's start included", caller.took)),
                );
            }
            Err(error) => {
                for (at, line) in error
                    .to_string()
                    .lines()
                    .filter(|l| !l.is_empty())
                    .enumerate()
                {
                    self.row(if at == 0 { "the CLI says" } else { "" }, &self.bad(line));
                }
            }
        }
    }

    pub(super) fn refusal(&self, what: &str, answer: &Answer) {
        println!("  {what}");
        let status = self.bad(&answer.status.to_string());
        for (at, line) in wrapped(answer.body.trim()).iter().enumerate() {
            if at == 0 {
                println!("    {status} {line}");
            } else {
                println!("        {line}");
            }
        }
        println!();
    }

    pub(super) fn kernel_refusal(&self, what: &str, said: &str) {
        println!("  {what}\n    {} {said}", self.bad("EPERM"));
    }

    pub(super) fn closing(
        &self,
        stage: &Stage,
        node: &StageNode,
        agent: &Agent,
        took: Duration,
    ) -> Result<()> {
        self.heading("Counted");
        let metrics = agent.operator("/metrics")?.body;
        let mut counted = 0;
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("kiam_kernel_verdicts_total{") else {
                continue;
            };
            let (labels, count) = rest.rsplit_once("} ").context("a metric has a value")?;
            if count != "0" {
                self.row("by the kernel", &format!("{count:>4}  {labels}"));
                counted += 1;
            }
        }
        ensure!(counted > 0, "the kernel programs have counted nothing");
        let calls = stage.sts().assume_role_calls();
        self.row(
            "STS",
            &format!("{calls:>4}  AssumeRole calls, for as many roles"),
        );
        let traffic = node.imds().traffic();
        let (bytes, connections) = (traffic.bytes(), traffic.connections());
        ensure!(
            bytes == 0 && connections == 0,
            "{bytes} bytes reached the node's service"
        );
        let text = format!("{bytes:>4}  bytes from pods, in {connections} connections");
        self.row("the node's IMDS", &self.good(&text));
        println!("\n  All of it took {took:.1?}.\n");
        Ok(())
    }

    pub(super) fn invitation(&self, parts: &[Part], pods: &[Pod], stage: &Stage, node: &StageNode) {
        self.heading("It goes on until Ctrl-C. To play with it, as root in another terminal:");
        for (part, pod) in parts.iter().zip(pods) {
            println!(
                "  {}",
                self.dim(&format!("# in {}/{}", part.namespace, part.name))
            );
            let shell = pod.place().shell();
            println!("  {shell} curl -s {METADATA_SERVICE}{LISTING}");
        }
        let aws = AWS.program("aws");
        let sts = stage.sts().url();
        println!("  {}", self.dim("# the AWS CLI, in place of curl"));
        println!(
            "  env AWS_DEFAULT_REGION=eu-west-1 AWS_ENDPOINT_URL_STS={sts} {} sts get-caller-identity",
            aws.display()
        );
        println!(
            "  {}",
            self.dim("# change an annotation: files are read again when they change")
        );
        println!("  ls {}", stage.objects().folder().display());
        println!("  {}", self.dim("# what the agent counts"));
        let netns = node.node().place().netns().path().display();
        println!("  nsenter --net={netns} curl -s http://127.0.0.1:9612/metrics\n");
    }
}

/// Lines of a readable width.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines
            .last_mut()
            .filter(|line| line.len() + word.len() < WIDTH);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
