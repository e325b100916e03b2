//! `cargo xtask demo`: a node whose pods get their own credentials, to look at.
//!
//! Everything is real but AWS and the cluster's API: kiam's programs, the kernel programs, and in
//! the pods the AWS CLI as it comes. STS is a double that checks every signature; the objects
//! come from a file. What is printed is what was seen, not what was meant to happen: if it is not
//! what was meant, the demo fails.

mod pages;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use crate::kiam::{METADATA_PORT, Programs};
use crate::probe::{METADATA_SERVICE, Prober};
use crate::sandbox::{NodeOptions, Pod, run as run_program};
use crate::setup::{self, AWS, Consent, Need};
use crate::stage::{Stage, StageNode};
use pages::{Caller, Page, Witness};

const CLIENT_LIMIT: Duration = Duration::from_secs(60);
const LISTING: &str = "/latest/meta-data/iam/security-credentials/";

/// Flags of `cargo xtask demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Leave it running until Ctrl-C, and say how to play with it
    #[arg(long)]
    keep: bool,
}

/// A pod of the play, and what becomes of it.
struct Part {
    namespace: &'static str,
    name: &'static str,
    role: &'static str,
    permitted: Option<&'static str>,
}

const PARTS: [Part; 3] = [
    Part {
        namespace: "blue",
        name: "web",
        role: "blue-reader",
        permitted: Some("arn:aws:iam::123456789012:role/blue-.*"),
    },
    Part {
        namespace: "green",
        name: "jobs",
        role: "green-writer",
        permitted: Some("arn:aws:iam::123456789012:role/green-.*"),
    },
    Part {
        namespace: "grey",
        name: "curious",
        role: "blue-reader",
        permitted: None,
    },
];

/// Runs the command.
///
/// # Errors
/// When something cannot be set up, or what is shown is not what was promised.
pub fn run(args: &Args) -> Result<()> {
    setup::prepare(&[Need::Sandbox, Need::Kernel, Need::Aws], args.consent)?;
    let programs = Programs::build()?;
    let began = Instant::now();

    let stage = Stage::new(&programs)?;
    let node = stage.node("node-1", NodeOptions::default())?;
    for part in &PARTS {
        stage
            .objects()
            .put_namespace(part.namespace, part.permitted)?;
    }
    let pods = PARTS
        .iter()
        .map(|part| stage.pod(&node, (part.namespace, part.name), Some(part.role)))
        .collect::<Result<Vec<_>>>()?;
    let _server = stage.start_server(&[])?;
    let agent = stage.start_agent(&node, &["--level=debug"])?;

    let page = Page::for_this_terminal();
    page.opening(&node, &stage, began.elapsed());
    let witness = Witness::new(&agent);

    // As three teams would, at the same time.
    let callers = thread::scope(|scope| {
        let calls: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| call(&stage, pod)))
            .collect();
        let results = calls.into_iter().map(|call| match call.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect::<Result<Vec<_>>>()
    })?;
    for ((part, pod), caller) in PARTS.iter().zip(&pods).zip(&callers) {
        let seen = witness.of(pod)?;
        page.caller(part, pod, &seen, caller);
        let own = format!(":assumed-role/{}/", part.role);
        match part.permitted {
            Some(_) => ensure!(caller.identity()?.contains(&own), "this is not {own}"),
            None => ensure!(caller.identity().is_err(), "it should have been refused"),
        }
    }

    let [web, _, curious] = &pods[..] else {
        anyhow::bail!("three pods were made");
    };
    refusals(&page, &node, web, curious)?;
    page.closing(&stage, &node, &agent, began.elapsed())?;
    if args.keep {
        page.invitation(&PARTS, &pods, &stage, &node);
        loop {
            thread::park();
        }
    }
    Ok(())
}

/// The AWS CLI as it comes: it is told which region and which STS, and nothing of credentials.
fn call(stage: &Stage, pod: &Pod) -> Result<Caller> {
    let mut command = pod.place().command(AWS.program("aws"));
    without_credentials(&mut command, stage)?;
    command.args(["sts", "get-caller-identity", "--output=json"]);
    let began = Instant::now();
    let ended = run_program("aws", command, CLIENT_LIMIT)?;
    Ok(Caller {
        took: began.elapsed(),
        ended,
    })
}

fn without_credentials(command: &mut Command, stage: &Stage) -> Result<()> {
    command
        .env_clear()
        .env("HOME", stage.sandbox().folder("home")?)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL_STS", stage.sts().url());
    Ok(())
}

/// What those are told who get nothing.
fn refusals(page: &Page, node: &StageNode, web: &Pod, curious: &Pod) -> Result<()> {
    let prober = Prober::this_program();
    page.heading("Refused, with a reason");
    let url = format!("{METADATA_SERVICE}{LISTING}");
    let answer = prober.get(curious.place(), &url)?.answer()?;
    ensure!(answer.status == 403, "grey/curious got {answer:?}");
    ensure!(
        answer.body.contains("iam.amazonaws.com/permitted"),
        "{answer:?}"
    );
    page.refusal("grey/curious asks for its role", &answer);

    let url = format!("{METADATA_SERVICE}{LISTING}green-writer");
    let answer = prober.get(web.place(), &url)?.answer()?;
    ensure!(answer.status == 403, "blue/web got {answer:?}");
    page.refusal("blue/web asks for green-writer", &answer);

    let url = format!(
        "http://{}:{METADATA_PORT}{LISTING}blue-reader",
        node.node().ip()
    );
    let answer = prober.get(node.node().place(), &url)?.answer()?;
    ensure!(answer.status == 403, "a process in no pod got {answer:?}");
    page.refusal("a process in no pod asks the agent itself", &answer);

    let url = format!("{METADATA_SERVICE}/latest/user-data");
    let answer = prober.get(web.place(), &url)?.answer()?;
    ensure!(answer.status == 404, "blue/web got {answer:?}");
    page.refusal("blue/web asks for the node's user data", &answer);

    let script = "import socket\ntry:\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n \
                  s.sendto(b'x', ('169.254.169.254', 80))\n print('sent')\nexcept OSError as e:\n \
                  print(e.strerror)";
    let mut command = web.place().command(AWS.program("python"));
    command.args(["-c", script]).env_clear();
    let ended = run_program("python", command, CLIENT_LIMIT)?;
    let said = ended.stdout.trim();
    ensure!(said == "Operation not permitted", "the packet was {said}");
    page.kernel_refusal("blue/web sends a packet past TCP (UDP)", said);
    Ok(())
}

impl Caller {
    /// Who STS says that the caller is.
    fn identity(&self) -> Result<String> {
        ensure!(self.ended.status.success(), "{}", self.ended.stderr.trim());
        let json: serde_json::Value =
            serde_json::from_str(&self.ended.stdout).context("the CLI's answer is no JSON")?;
        let arn = json["Arn"]
            .as_str()
            .context("the CLI's answer has no Arn")?;
        Ok(arn.to_owned())
    }
}
