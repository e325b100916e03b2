//! `cargo xtask faults`: the answers to pods while one part after another breaks.
//!
//! Two servers, three nodes with an agent each, and thirty pods that send requests all the time,
//! on a real etcd and kube-apiserver. Every answer is checked: the pod must have that role at that
//! time. Then many pods start at once, and finally all output is searched for secrets.

mod client;
mod clock;
mod fixture;
mod node;
mod planted;
mod report;
mod secrets;
mod servers;
mod startup_latency;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;
use toolchain::{AWS, Consent, kernel, page, prepare};

use fixture::Fixture;
use planted::Planted;
use pod_client::ask::now;
use report::{Report, Row};
use table::{Fault, NewPods, Notice};
use testbed::cluster;
use testbed::kiam::Programs;
use testbed::sandbox::{self, Sandbox};

/// The least that STS's credentials live; they are renewed after half of it.
const LIFE: Duration = Duration::from_secs(90);
/// Limit for new pods while something is broken that must not affect them.
const NEW_POD_LIMIT: Duration = Duration::from_secs(30);
/// Time for which new pods must get nothing.
const STARVED_FOR: Duration = Duration::from_secs(2);
/// Time in which pending requests end.
const SETTLE: Duration = Duration::from_millis(1500);
/// Number of pods that start for the startup latency, and how many each second.
const STARTING: (usize, u32) = (150, 50);

/// Flags of `cargo xtask faults`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Run only the faults whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,

    /// Duration of each fault
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    hold: u64,

    /// Continue with random pairs of faults until this time has passed
    #[arg(long, default_value_t = 6, value_name = "MINUTES")]
    minutes: u64,

    /// Run pairs only
    #[arg(long)]
    pairs: bool,

    /// Seed of the pairs (default: random, and printed)
    #[arg(long)]
    seed: Option<u64>,

    /// Keep the programs' logs in this folder
    #[arg(long, value_name = "FOLDER")]
    logs: Option<PathBuf>,

    /// Write the table to this page
    #[arg(long, value_name = "PAGE")]
    write: Option<PathBuf>,

    /// Print one JSON object, at the end
    #[arg(long)]
    json: bool,

    /// Build kiam with a defect, which must be detected
    #[arg(long, value_name = "DEFECT", conflicts_with_all = ["only", "json"])]
    planted: Vec<Planted>,
}

/// Runs the command.
///
/// # Errors
/// Fails when a fault has an effect that it must not have, or the cluster does not start.
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        AWS.plan(plan)?;
        cluster::plan(plan)?;
        let loses = "loses packets between agents and servers";
        plan.program("nft", "nftables", loses);
        plan.program("curl", "curl", "compacts etcd's history");
        clock::plan(plan);
        Ok(())
    })?;
    if let Some(missing) = sandbox::missing() {
        bail!("the faults need {missing}");
    }
    if !args.planted.is_empty() {
        return args
            .planted
            .iter()
            .try_for_each(|defect| planted::detect(*defect));
    }
    let programs = Programs::build()?;
    let seed = args
        .seed
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let mut report = Report::new(seed, args.json);
    in_sandbox(async |sandbox| {
        let outcome = run_suite(args, sandbox, &programs, &mut report).await;
        let kept = args.logs.as_ref().map(|folder| keep(sandbox, folder));
        outcome.and(kept.unwrap_or(Ok(())))
    })?;
    if let Some(page) = &args.write {
        page::replace(page, "cargo xtask faults --write", &report.text())?;
    }
    report.conclude()
}

/// Does something in the control namespace of a sandbox.
fn in_sandbox(what: impl AsyncFnOnce(&Sandbox) -> Result<()> + Send) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let control = sandbox.control().netns().clone();
    control.block_on(async || what(&sandbox).await)?
}

fn keep(sandbox: &Sandbox, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(sandbox.folder("logs")?)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}

async fn run_suite(
    args: &Args,
    sandbox: &Sandbox,
    programs: &Programs,
    report: &mut Report,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60 * args.minutes);
    let hold = Duration::from_secs(args.hold);
    let all = table::all();
    let wanted = |fault: &&Fault| {
        args.only
            .as_ref()
            .is_none_or(|name| fault.name.contains(name))
    };
    let faults: Vec<_> = all.iter().filter(wanted).collect();
    let names = || all.iter().map(|fault| fault.name).collect::<Vec<_>>();
    ensure!(
        !faults.is_empty(),
        "no fault has this in its name; the faults are\n  {}",
        names().join("\n  ")
    );
    let mut fixture = Fixture::begin(sandbox, programs, LIFE.max(hold * 4)).await?;
    fixture.canaries(NEW_POD_LIMIT).await?;
    report.add(quiet(&mut fixture, hold).await?);
    for fault in faults.iter().filter(|_| !args.pairs) {
        report.add(broken(&mut fixture, &[fault], hold).await?);
    }
    let mut random = StdRng::seed_from_u64(report.seed);
    while faults.len() > 1 && Instant::now() < end {
        let mut pair: Vec<&Fault> = faults.sample(&mut random, 2).copied().collect();
        pair.sort_by_key(|fault| fault.rank());
        if pair[0].group != pair[1].group {
            report.add(broken(&mut fixture, &[pair[0], pair[1]], hold).await?);
        }
    }
    if args.only.is_none() {
        let (pods, per_second) = STARTING;
        report.startup_latency =
            Some(startup_latency::measure(&mut fixture, pods, per_second).await?);
    }
    report.scan = Some(secrets::scan(&fixture, args.only.is_none()).await?);
    fixture.end()
}

const CHANGED: Notice = Notice::Failures("what is new may come when the pair is over");

/// Effects on pods while nothing is broken.
async fn quiet(fixture: &mut Fixture, hold: Duration) -> Result<Row> {
    // The first tries of all clients, and of processes that start, are no measure.
    tokio::time::sleep(SETTLE).await;
    let mut first = Row::new(String::new());
    judge(fixture, &mut first, Notice::Nothing, None, 0)?;
    tokio::time::sleep(hold).await;
    let mut row = Row::new("(nothing)".to_owned());
    row.recovered_ms = Some(0);
    judge(fixture, &mut row, Notice::Nothing, None, 0)?;
    Ok(row)
}

/// Injects faults, lifts them, and waits until pods are served again.
async fn broken(fixture: &mut Fixture, faults: &[&Fault], hold: Duration) -> Result<Row> {
    let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
    let mut row = Row::new(names.join(" + "));
    let begin = now();
    for fault in faults {
        (fault.inject)(fixture).await?;
    }
    new_pods(fixture, faults, &mut row).await;
    tokio::time::sleep(hold).await;
    for fault in faults.iter().rev() {
        (fault.lift)(fixture).await?;
    }
    let limit = faults.iter().map(|fault| fault.recovery).sum();
    let took = fixture.canaries(limit + NEW_POD_LIMIT).await;
    row.recovered(&took, limit);
    let recovered = now();
    if faults.len() > 1 {
        // What one changes, the other may have kept from being heard of.
        let clients = fixture.clients.iter_mut();
        clients.for_each(|client| client.excuse(recovered));
    }
    tokio::time::sleep(SETTLE).await;
    let noticed = faults.iter().find(|fault| fault.notice != Notice::Nothing);
    let notice = noticed.map_or(Notice::Nothing, |fault| fault.notice);
    let pair = (faults.len() > 1).then_some(begin);
    judge(fixture, &mut row, notice, pair, recovered)?;
    fixture.tidy().await?;
    fixture.renewed().await;
    Ok(row)
}

/// Checks that new pods get credentials in the middle of a fault, or do not, where that is known.
async fn new_pods(fixture: &mut Fixture, faults: &[&Fault], row: &mut Row) {
    let all = |what| faults.iter().all(|fault| fault.new_pods == what);
    if all(NewPods::Served) {
        if let Err(error) = fixture.canaries(NEW_POD_LIMIT).await {
            row.note(format!("while it lasted: {error:#}"));
        }
    } else if all(NewPods::Starved) && fixture.canaries(STARVED_FOR).await.is_ok() {
        row.note("new pods got credentials while it lasted: it was not broken".to_owned());
    }
}

/// Judges the answers since the last call. In a pair, begun at `pair`, what one fault changes may
/// be kept from its pods by the other: they may see failures.
fn judge(
    fixture: &mut Fixture,
    row: &mut Row,
    usual: Notice,
    pair: Option<u64>,
    recovered: u64,
) -> Result<()> {
    for client in &mut fixture.clients {
        let changed = pair.is_some_and(|begin| client.is_changed(begin));
        let notice = if changed { CHANGED } else { usual };
        for attempt in client.drain()? {
            let verdict = client.judge(&attempt, &fixture.sts);
            row.add(client.pod.name(), &attempt, verdict, notice, recovered);
            fixture.tokens.extend(attempt.token);
            fixture.error_replies.extend(attempt.failure);
        }
    }
    Ok(())
}
