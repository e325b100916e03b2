//! `cargo xtask bench`: the cost of kiam, in one report, over the real path.
//!
//! Everything is built in release mode, this program too: it builds and executes itself so. Sides
//! that are compared are measured by turns, and their ratio within each turn, so that other load of
//! the machine affects both.
//!
//! ```text
//! requests      requests of pods, by turns
//! lives         an agent's start, and a pod's
//! costs         memory, CPU, sizes
//! system_calls  system calls of a request
//! growth        a server as its cluster grows
//! report        tables and JSON
//! plot          curves
//! ```

mod costs;
mod growth;
mod lives;
mod plot;
mod report;
mod requests;
mod system_calls;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use tokio::time::Instant;
use toolchain::{Consent, prepare};

pub use report::Report;

use crate::bench_ebpf;
use pod_client::flood::How;
use report::{Aim, Figure, Machine, Section};
use testbed::file_cluster::FileCluster;
use testbed::kiam::{self, Programs};
use testbed::sandbox::Pod;

/// Path of the credentials of the measured pod.
const ROLE_PATH: &str = "/latest/meta-data/iam/security-credentials/a-reader";
/// Address that SDKs send requests to.
const METADATA: SocketAddr = kiam_common::metadata_address::METADATA_SERVICE;

/// Flags of `cargo xtask bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Number of measurements of each kind
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub turns: u32,

    /// Duration of each measurement
    #[arg(long, default_value_t = 300, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(50..=10_000))]
    pub time: u64,

    /// Another server to measure, reachable from pods: an http:// URL whose host is an address
    #[arg(long, value_name = "NAME=URL")]
    pub against: Vec<Against>,

    /// Load the server with 150,000 pods on 5,000 nodes instead of a tenth; takes minutes longer
    #[arg(long)]
    pub full: bool,

    /// Also load servers with clusters of eight sizes, up to 15,000 pods, or 150,000 with --full;
    /// takes ten minutes longer
    #[arg(long)]
    pub growth: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Write the tables to this page, between its marks, and plots to the folder of its name
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,
}

/// Another server to measure.
#[derive(Debug, Clone)]
pub struct Against {
    name: String,
    address: SocketAddr,
    path: String,
}

impl FromStr for Against {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, url) = text.split_once('=').context("it is not NAME=URL")?;
        let url: http::Uri = url.parse()?;
        let host = url.host().context("the URL names no host")?;
        let host = host.trim_matches(['[', ']']).parse()?;
        Ok(Self {
            name: name.to_owned(),
            address: SocketAddr::new(host, url.port_u16().unwrap_or(80)),
            path: url.path().to_owned(),
        })
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when something does not compile, the sandbox fails, or an answer is wrong.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        let itself = kiam::xtask_release()?;
        let error = Command::new(&itself)
            .args(std::env::args_os().skip(1))
            .exec();
        return Err(error).with_context(|| format!("cannot become {}", itself.display()));
    }
    prepare(Consent::default(), |plan| {
        plan.program("strace", "strace", "counts the system calls of a request");
        Ok(())
    })?;
    let programs = Programs::build_release()?;
    let report = measure(args, &programs)?;
    if let Some(page) = &args.write {
        report.write(page)?;
    }
    if args.json {
        println!("{}", report.json());
    } else {
        println!("{}", report.text());
    }
    Ok(())
}

/// Measures.
///
/// # Errors
/// Fails when the sandbox fails, or an answer is wrong.
pub fn measure(args: &Args, programs: &Programs) -> Result<Report> {
    let machine = Machine::this()?;
    let pod_client = kiam::pod_client()?;
    let cluster = FileCluster::new(programs)?;
    cluster.objects().put_namespace("team-a", Some(".*"))?;
    let server = cluster.start_server(&["--level=warn"])?;
    let mut sections = timed("requests", || requests::measure(args, &cluster, pod_client))?;
    sections.push(timed("starts", || lives::measure(&cluster, pod_client))?);
    sections.push(timed("system calls", || {
        system_calls::measure(&cluster, pod_client)
    })?);
    let (section, memory) = timed("agent", || costs::agent(&cluster, pod_client))?;
    sections.push(section);
    drop((server, cluster));
    sections.push(timed("server", || costs::server(args, programs))?);
    sections.push(timed("other traffic", || connects(args, programs))?);
    sections.push(timed("programs", || costs::programs(programs))?);
    let mut plots = requests::plots(&sections);
    plots.push(memory);
    if args.growth {
        let (section, curves) = timed("growth", || growth::measure(args.full, programs))?;
        sections.push(section);
        plots.extend(curves);
    }
    Ok(Report {
        machine,
        sections,
        plots,
    })
}

/// Prints how long a part took.
#[expect(clippy::print_stderr, reason = "shows progress to the user")]
fn timed<T>(part: &str, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let measured = measure().with_context(|| format!("cannot measure: {part}"))?;
    eprintln!("{part}: {:.0?}", begun.elapsed());
    Ok(measured)
}

/// Measures the cost of the kernel programs to other traffic: the figures of `bench-ebpf`.
fn connects(args: &Args, programs: &Programs) -> Result<Section> {
    let args = bench_ebpf::Args {
        turns: args.turns.max(6),
        time: 200,
        json: false,
    };
    let report = bench_ebpf::measure(&args, programs)?;
    let mut figures = Vec::new();
    for row in &report.rows {
        let name = row.work.split(',').next().unwrap_or(row.work);
        let key = name
            .to_lowercase()
            .replace([' ', '+'], "_")
            .replace("___", "_");
        let figure = |side: &str, ratio: [f64; 3]| {
            let key = format!("{key}_{side}_ratio");
            Figure::of(&key, &format!("{name}: {side} ÷ nothing"), "", &ratio)
        };
        let ebpf = figure("ebpf", row.ebpf_ratio);
        figures.push(match row.target {
            Some(target) if name.contains("bulk") => ebpf.aiming(Aim::AtLeast(target)),
            Some(target) => ebpf.aiming(Aim::AtMost(target)),
            None => ebpf,
        });
        figures.push(figure("iptables", row.iptables_ratio));
        let rate = format!("{key}_per_second");
        figures.push(Figure::one(
            &rate,
            &format!("{name}: nothing on the node"),
            "a second",
            row.nothing,
        ));
    }
    Ok(Section {
        title: "What the kernel programs cost everything else",
        path: "A pod works with an address outside of its node, by turns with nothing on the node, with a real agent's programs attached, and with a DNAT rule of iptables as kiam's. Time of one ÷ time of one; of bulk, throughput ÷ throughput.".into(),
        figures,
    })
}

/// The client, in a pod.
fn client_command(
    pod: &Pod,
    pod_client: &Path,
    how: How,
    address: SocketAddr,
    path: &str,
) -> Command {
    let how = clap::ValueEnum::to_possible_value(&how);
    let mut command = pod.place().command(pod_client);
    command.arg("flood");
    command.args(how.as_ref().map(clap::builder::PossibleValue::get_name));
    command.args([&address.to_string(), path]);
    command
}
