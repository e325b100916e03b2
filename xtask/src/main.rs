//! `cargo xtask`: dispatches to the commands in the library.

use std::process::ExitCode;

use ::bench::{bench, bench_ebpf, instructions, load};
use clap::{Parser, Subcommand};
use suites::{attack, clients, conformance, demo, e2e, faults, node, restarts, sandbox};
use toolchain::kernel;
use xtask::{deploy, fuzz, image, lint, test};

/// kiam's development commands
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the kernel programs
    BuildEbpf(kernel::Args),
    /// Show a node whose pods get their own credentials, in under a minute
    Demo(demo::Args),
    /// Run all tests that need no cluster: unit tests, then the sandbox with real kernel programs
    Test(test::Args),
    /// Run the whole path against a real etcd and kube-apiserver
    E2e(e2e::Args),
    /// Check alerts and dashboards with promtool
    Alerts(deploy::AlertsArgs),
    /// Check the Helm chart with helm and a real kube-apiserver
    Chart(deploy::ChartArgs),
    /// Generate deploy/manifests from the chart
    Manifests(deploy::ManifestsArgs),
    /// Generate docs/reference from the programs: every flag, every metric
    Docs(deploy::DocsArgs),
    /// Build the container image, without a daemon and without a registry
    Image(image::Args),
    /// Check format, clippy, documentation and dependencies
    Lint(lint::Args),
    /// Build a book of the pages in docs
    Book(deploy::BookArgs),
    /// Check the workflows of .github
    Workflows(deploy::WorkflowsArgs),
    /// Make nodes and pods for manual experiments
    Sandbox(sandbox::Args),
    /// Run kiam on the kernels of Debian's suites, in virtual machines
    Node(node::Args),
    /// Attack, from a hostile pod, the node's metadata service and other pods' credentials
    Attack(attack::Args),
    /// Run the property tests of hostile input for a given time
    Fuzz(fuzz::Args),
    /// Run AWS SDKs and other clients in every state of kiam that they can meet
    Clients(clients::Args),
    /// Compare a metadata service, this agent's or another, with the known behavior of the real one
    Conformance(conformance::Args),
    /// Measure the cost of kiam, in one report
    Bench(bench::Args),
    /// Count the instructions of a request, and compare them with the budget
    Instructions(instructions::Args),
    /// Measure the cost of the kernel programs to other traffic
    BenchEbpf(bench_ebpf::Args),
    /// Load a server with the pods and agents of a large cluster, and measure it
    Load(load::Args),
    /// Upgrade and kill an agent repeatedly while its pod sends requests
    Restarts(restarts::Args),
    /// Break the parts of a small cluster, one after another, while its pods send requests
    Faults(faults::Args),
}

#[expect(clippy::print_stderr, reason = "for the terminal")]
fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::BuildEbpf(args) => kernel::run(&args).map(drop),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Alerts(args) => deploy::alerts(&args),
        Command::Chart(args) => deploy::chart(&args),
        Command::Manifests(args) => deploy::manifests(&args),
        Command::Docs(args) => deploy::docs(&args),
        Command::Image(args) => image::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Book(args) => deploy::book(&args),
        Command::Workflows(args) => deploy::workflows(&args),
        Command::Sandbox(args) => sandbox::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Clients(args) => clients::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Attack(args) => attack::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Instructions(args) => instructions::run(&args),
        Command::BenchEbpf(args) => bench_ebpf::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Restarts(args) => restarts::run(&args),
        Command::Faults(args) => faults::run(&args),
    }
}
