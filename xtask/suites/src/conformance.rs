//! `cargo xtask conformance`: a metadata service, line by line against the known behavior of the
//! real one: this agent's by default, in a sandbox; with `--against`, any other, to list the
//! differences.
//!
//! ```text
//! body     checks of a body
//! table    requests, expected replies, sources
//! wire     one exchange, as bytes
//! ```

mod body;
mod table;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use toolchain::{Consent, kernel, prepare};

use table::{LINES, Line};
use testbed::file_cluster::FileCluster;
use testbed::kiam::Programs;
use testbed::sandbox;
use testbed::sandbox::{NodeOptions, run as run_program};
use wire::Reply;

/// Limit for all lines together, in the sandbox.
const LIMIT: Duration = Duration::from_secs(60);
/// Role of the pod in the sandbox.
const ROLE: &str = "a-reader";

/// Flags of `cargo xtask conformance`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Ask this service from here, as in http://169.254.169.254 or http://127.0.0.1:1338, instead
    /// of an agent in a sandbox
    #[arg(long, value_name = "URL")]
    against: Option<String>,

    /// Use kiam's programs that were built before, in this folder
    #[arg(long, hide = true, value_name = "FOLDER")]
    programs: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Result of a line.
#[derive(Debug, Serialize)]
struct Outcome {
    request: &'static str,
    right: bool,
    /// Source of the expectation.
    source: &'static str,
    /// Error, or the reply.
    found: String,
}

#[derive(Debug, Serialize)]
struct Report {
    against: String,
    lines: usize,
    wrong: usize,
    outcomes: Vec<Outcome>,
}

/// Runs the command.
///
/// # Errors
/// Fails when the service does not answer, or a line of this agent's is wrong.
pub fn run(args: &Args) -> Result<()> {
    match &args.against {
        Some(url) => compare(url, args.json),
        None => in_sandbox(args),
    }
}

/// Runs this program again inside a pod.
#[expect(clippy::print_stdout, reason = "the command's result")]
fn in_sandbox(args: &Args) -> Result<()> {
    if args.programs.is_none() {
        prepare(args.consent, |plan| {
            sandbox::plan(plan);
            kernel::plan(plan);
            Ok(())
        })?;
    }
    let programs = Programs::found_or(args.programs.as_deref(), Programs::build)?;
    let cluster = FileCluster::new(&programs)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    cluster.objects().put_namespace("team-a", Some(".*"))?;
    let pod = cluster.pod(&node, ("team-a", "alice"), Some(ROLE))?;
    let _server = cluster.start_server(&[])?;
    let _agent = cluster.start_agent(&node, &[])?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = pod.place().command(program);
    command.args(["conformance", "--against=http://169.254.169.254"]);
    if args.json {
        command.arg("--json");
    }
    let ended = run_program("conformance", command, LIMIT)?;
    print!("{}", ended.stdout);
    ensure!(ended.status.success(), "{}", ended.stderr.trim());
    let reached = node.imds().traffic().bytes();
    ensure!(
        reached == 0,
        "{reached} bytes reached the node's metadata service"
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn compare(url: &str, json: bool) -> Result<()> {
    let service = wire::Service::find(url)?;
    let role = service.ask(&table::listing())?;
    ensure!(
        role.status == 200,
        "{url} names no role: {} {:?}; run this where a role is to be had",
        role.status,
        role.body
    );
    let token = service.ask(&table::token())?;
    let outcomes: Vec<_> = LINES
        .iter()
        .map(|line| judge(line, &service, role.body.trim(), token.body.trim()))
        .collect();
    let wrong = outcomes.iter().filter(|outcome| !outcome.right).count();
    let report = Report {
        against: url.to_owned(),
        lines: outcomes.len(),
        wrong,
        outcomes,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for outcome in &report.outcomes {
            let mark = if outcome.right { "ok    " } else { "DIFFER" };
            println!("{mark} {:<74} {}", outcome.request, outcome.found);
            if !outcome.right {
                println!("       right by: {}", outcome.source);
            }
        }
        println!("\n{} lines against {url}, {wrong} differ", report.lines);
    }
    if wrong > 0 {
        bail!("{wrong} of {} lines differ", report.lines);
    }
    Ok(())
}

fn judge(line: &Line, service: &wire::Service, role: &str, token: &str) -> Outcome {
    let request = line.bytes(role, token);
    let (right, found) = match service.ask(&request) {
        Ok(reply) => match line.wrong(&reply, role) {
            None => (true, reply.status.to_string()),
            Some(wrong) => (false, wrong),
        },
        Err(error) => (line.may_close, format!("{error:#}")),
    };
    Outcome {
        request: line.name,
        right,
        source: line.source,
        found,
    }
}

impl Line {
    /// Returns the first error of a reply.
    fn wrong(&self, reply: &Reply, role: &str) -> Option<String> {
        let Reply { status, body, .. } = reply;
        if !self.status.contains(status) {
            return Some(format!(
                "{status} and not {:?}: {}",
                self.status,
                body.trim()
            ));
        }
        for (name, expected) in self.headers {
            let found = reply.header(name).unwrap_or("nothing");
            if !found.starts_with(expected) {
                return Some(format!(
                    "{status}, but {name} is {found} and not {expected}"
                ));
            }
        }
        (self.body)(body, role).map(|wrong| format!("{status}, but {wrong}"))
    }
}
