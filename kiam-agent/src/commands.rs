//! The commands of the agent's program: each prints its result and exits.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "commands print to the terminal"
)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use kiam_common::http_client;

use crate::app::{self, PreAttached, StartError};
use crate::args::{AttachArgs, CleanupArgs, DoctorArgs, HealthArgs, StatusArgs};
use crate::bypass_counter;
use crate::doctor::{self, State};
use crate::iptables::{self, IptablesError};
use crate::kernel::{self, Removed};
use crate::old_connections::{self, Closed};
use crate::route_guard;
use crate::status::{self, Report, Server};

/// Timeout for the status page.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a status page with all listed pods and long reasons, in bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Removes what agents leave in the kernel, as far as possible. The exit code is 1 if something
/// could not be removed.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let folder = args.bpffs.display();
    let pins = match kernel::cleanup(&args.bpffs) {
        Ok(removed) if removed == Removed::default() => Ok(format!("nothing of kiam in {folder}")),
        Ok(Removed { links, maps }) => Ok(format!(
            "removed {links} programs and {maps} maps from {folder}: pods now reach the node's metadata service"
        )),
        Err(error) => Err(error.to_string()),
    };
    let rules = match runtime()?.block_on(iptables::cleanup()) {
        Ok(0) | Err(IptablesError::NoProgram) => Ok("nothing of kiam in the firewall".to_owned()),
        Ok(tables) => Ok(format!(
            "removed the rules of kiam from {tables} tables of the firewall"
        )),
        Err(error) => Err(error.to_string()),
    };
    let routing = match route_guard::cleanup() {
        Ok(0) => Ok("nothing of kiam in the routing tables".to_owned()),
        Ok(removed) => Ok(format!(
            "removed {removed} routing rules and routes of kiam"
        )),
        Err(error) => Err(error.to_string()),
    };
    let counter = match bypass_counter::cleanup() {
        Ok(false) => Ok("nothing of kiam in nf_tables".to_owned()),
        Ok(true) => Ok("removed the table of kiam from nf_tables".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let mut code = ExitCode::SUCCESS;
    for outcome in [pins, rules, routing, counter] {
        match outcome {
            Ok(done) => println!("{done}"),
            Err(error) => {
                eprintln!("{error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Attaches the kernel programs before an agent runs, and closes pods' older connections to the
/// metadata service.
pub fn attach(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let PreAttached { pods, lookup, new } = app::pre_attach(args).map_err(StartError::from)?;
    let pods = pods.display();
    if new {
        println!("attached the programs of kiam to {pods}: pods are refused until an agent runs");
    } else {
        println!("the programs of kiam are already attached to {pods}");
    }
    let Closed {
        namespaces,
        connections,
        skipped,
    } = old_connections::close(&args.network_namespaces, &lookup)?;
    println!(
        "closed {connections} connections to the metadata service in {namespaces} network namespaces"
    );
    // These connections are cut off by the programs in any case.
    for error in skipped {
        eprintln!("{error}");
    }
    if let Some(mut count) = kernel::ClosedCount::pinned(&args.node.bpffs)? {
        count.add(u64::try_from(connections)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

/// Checks whether the node can be guarded. The exit code is 1 if not.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = runtime()?.block_on(doctor::examine(args));
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(match report.state {
        State::Ok | State::Warn => ExitCode::SUCCESS,
        State::Fail => ExitCode::FAILURE,
    })
}

/// Shows the pods that the running agent knows. The exit code is 1 if a pod with a role gets
/// nothing, or if the agent is not connected to a server.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(args.address, "/status", STATUS_TIMEOUT)?;
    if answer.status() != StatusCode::OK {
        let body = String::from_utf8_lossy(answer.body()).trim().to_owned();
        anyhow::bail!(
            "the agent at {} answered {}: {body}",
            args.address,
            answer.status()
        );
    }
    let report: Report = serde_json::from_slice(answer.body()).with_context(|| {
        format!(
            "the answer from {} is not from an agent of this version",
            args.address
        )
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", status::text(&report));
    }
    let well = matches!(report.server, Server::Synced { .. }) && report.pods.unserved == 0;
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints the descriptions of all metrics.
pub fn metrics() -> anyhow::Result<ExitCode> {
    let described = app::descriptions().context("cannot describe the metrics")?;
    println!("{}", serde_json::to_string_pretty(&described)?);
    Ok(ExitCode::SUCCESS)
}

/// Asks the running agent whether it serves. The exit code is 1 if it does not.
pub fn health(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer = ask(args.address, path, args.timeout)?;
    let body = String::from_utf8_lossy(answer.body());
    Ok(if answer.status() == StatusCode::OK {
        print!("{body}");
        ExitCode::SUCCESS
    } else {
        eprint!("{body}");
        ExitCode::FAILURE
    })
}

fn ask(address: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<Response<Bytes>> {
    let request = Request::get(path).header(HOST, address.to_string());
    let request = request.body(Empty::new())?;
    let answer = async {
        let answer = http_client::send(address, request, MAX_ANSWER_BYTES);
        tokio::time::timeout(limit, answer).await
    };
    let answer = runtime()?.block_on(answer);
    let limit = kiam_common::duration::format(limit);
    let answer = answer.with_context(|| format!("no answer from {address} within {limit}"))?;
    answer.context("is the agent running, and is this its --prometheus-listen-addr?")
}
