//! The agent's commands other than to run: each answers on the terminal, and ends.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is where a command answers"
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

use crate::app::{self, Alone, StartError};
use crate::args::{AttachArgs, CleanupArgs, DoctorArgs, HealthArgs, StatusArgs};
use crate::bypass_counter;
use crate::doctor::{self, State};
use crate::iptables::{self, IptablesError};
use crate::kernel::{self, Removed};
use crate::old_connections::{self, Closed};
use crate::route_guard;
use crate::status::{self, Report, Server};

/// For a status page.
const PATIENCE: Duration = Duration::from_secs(5);
/// A page of as many pods as are listed, with long reasons, in bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Removes what agents leave in the kernel: all of it that can be removed. The exit code is 1 if
/// something could not.
///
/// # Errors
/// When it cannot begin.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let folder = args.bpffs.display();
    let pins = match kernel::cleanup(&args.bpffs) {
        Ok(removed) if removed == Removed::default() => {
            Ok(format!("nothing of kiam's is in {folder}"))
        }
        Ok(Removed { links, maps }) => Ok(format!(
            "removed {links} programs and {maps} maps from {folder}; pods reach the node's metadata service now"
        )),
        Err(error) => Err(error.to_string()),
    };
    let rules = match runtime()?.block_on(iptables::cleanup()) {
        Ok(0) | Err(IptablesError::NoProgram) => {
            Ok("nothing of kiam's is in the firewall".to_owned())
        }
        Ok(tables) => Ok(format!(
            "removed kiam's rules from {tables} tables of the firewall"
        )),
        Err(error) => Err(error.to_string()),
    };
    let routing = match route_guard::cleanup() {
        Ok(0) => Ok("nothing of kiam's is in the routing".to_owned()),
        Ok(removed) => Ok(format!(
            "removed {removed} of kiam's routing rules and routes"
        )),
        Err(error) => Err(error.to_string()),
    };
    let counter = match bypass_counter::cleanup() {
        Ok(false) => Ok("nothing of kiam's is in nf_tables".to_owned()),
        Ok(true) => Ok("removed kiam's table from nf_tables".to_owned()),
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

/// Has the kernel programs at work before there is an agent, and closes pods' connections to the
/// metadata service from before them.
///
/// # Errors
/// When the kernel does not do its part, or pods' network namespaces cannot be entered.
pub fn attach(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let Alone {
        pods,
        known,
        attached,
    } = app::alone(args).map_err(StartError::from)?;
    let pods = pods.display();
    if attached {
        println!("attached kiam's programs to {pods}: pods are refused until an agent runs");
    } else {
        println!("kiam's programs are at work on {pods} already");
    }
    let Closed {
        namespaces,
        connections,
        passed_over,
    } = old_connections::close(&args.network_namespaces, &known)?;
    println!(
        "closed {connections} connections to the metadata service in {namespaces} network namespaces"
    );
    // What pods have there is cut off all the same.
    for error in passed_over {
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
        .context("cannot start")
}

/// Tells whether the node can be guarded. The exit code is 1 if not.
///
/// # Errors
/// When the report cannot be made.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    // One provider for all of the process; it fails only if there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
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

/// Shows what the running agent knows of its pods. The exit code is 1 if any gets nothing that
/// should, or no server informs the agent.
///
/// # Errors
/// When there is no agent, or it does not tell.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(args.address, "/status", PATIENCE)?;
    if answer.status() != StatusCode::OK {
        let said = String::from_utf8_lossy(answer.body()).trim().to_owned();
        anyhow::bail!(
            "the agent at {} answers {}: {said}",
            args.address,
            answer.status()
        );
    }
    let report: Report = serde_json::from_slice(answer.body()).with_context(|| {
        format!(
            "what answers at {} is no agent of this version",
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

/// Asks the running agent whether it serves. The exit code is 1 if it says no.
///
/// # Errors
/// When there is no agent, or it does not answer in time.
pub fn health(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer = ask(args.address, path, args.timeout)?;
    let said = String::from_utf8_lossy(answer.body());
    Ok(if answer.status() == StatusCode::OK {
        print!("{said}");
        ExitCode::SUCCESS
    } else {
        eprint!("{said}");
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
    let answer = answer.with_context(|| format!("{address} does not answer within {limit}"))?;
    answer.context("is the agent running, with --prometheus-listen-addr, and this its address?")
}
