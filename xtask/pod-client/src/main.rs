//! Program that the test bed and the benchmarks run in pods.

use std::process::ExitCode;

use clap::Parser;
use pod_client::{ask, flood, limit, probe, steady, work};

#[derive(Debug, Parser)]
#[command(name = "pod-client", about, version)]
enum Command {
    /// Send one HTTP request and print its answer
    Probe(probe::Args),
    /// Ask for credentials again and again, as SDKs do
    Ask(ask::Args),
    /// Send requests at a steady rate
    Steady(steady::Args),
    /// Send as many requests as will go
    Flood(flood::Args),
    /// Serve one answer with hyper alone
    Limit(limit::Args),
    /// Make other traffic
    Work(work::Args),
}

#[expect(clippy::print_stderr, reason = "for the terminal")]
fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Probe(args) => probe::run(&args),
        Command::Ask(args) => ask::run(&args),
        Command::Steady(args) => steady::run(&args),
        Command::Flood(args) => flood::run(&args),
        Command::Limit(args) => limit::run(&args),
        Command::Work(args) => work::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
