//! `cargo xtask load`: one kiam-server with a cluster's worth of pods and agents.
//!
//! The server is the real program, in a process of its own, in release mode. Its Kubernetes API and
//! its STS are doubles that speak the real protocols and answer at once; its agents are the real
//! protocol's clients, each with a certificate of its own and mutual TLS, that check each
//! update. All of it talks over loopback.
//!
//! ```text
//! fleet    the synthetic cluster
//! api      its Kubernetes API
//! agents   the streams and their updates
//! process  the cost of the server's process
//! report   the figures, and the targets
//! ```

mod agents;
mod api;
mod fleet;
mod process;
mod report;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

pub use report::Report;

use agents::Agents;
use api::Api;
use fleet::Fleet;
use process::Server;
use testbed::doubles::sts::Sts;
use testbed::kiam::Programs;
use testbed::pki::Authority;

/// Limit until a cluster is read, and its credentials are issued.
const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// Limit for the credentials of the last pods.
const PUSH_LIMIT: Duration = Duration::from_secs(10);
/// Time for which a new pod stays.
const STAY: Duration = Duration::from_secs(5);
/// Interval, among new pods, of those with a role that none had before.
const NEW_ROLE_EVERY: u64 = 10;

/// Flags of `cargo xtask load`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Pods at the start, each with a role
    #[arg(long, default_value_t = 150_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub pods: u64,

    /// Nodes, each with the stream of an agent
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub nodes: u64,

    /// Namespaces of the pods
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub namespaces: u64,

    /// Roles of the pods
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub roles: u64,

    /// Pods created, and deleted, per second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rate: u32,

    /// Duration of creating and deleting pods
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,

    /// Idle time before memory is read, during which CPU time is counted
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub quiet: u64,

    /// Use the server in this folder instead of building one, to compare with another commit
    #[arg(long, value_name = "FOLDER")]
    pub programs: Option<PathBuf>,

    /// Run the server under a profiler, such as `perf record -g -o FILE`: memory and CPU are then
    /// those of the profiler
    #[arg(long, value_name = "COMMAND")]
    pub under: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Fail when a target is missed, and not only on errors
    #[arg(long)]
    pub check: bool,
}

impl Args {
    /// A cluster of that size, for a few seconds.
    #[must_use]
    pub const fn of(pods: u64, nodes: u64, roles: u64) -> Self {
        Self {
            pods,
            nodes,
            namespaces: 2_000,
            roles,
            rate: 100,
            seconds: 10,
            quiet: 5,
            programs: None,
            under: None,
            json: false,
            check: false,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when something is wrong, or with `--check` a target is missed.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder)?,
        None => Programs::build_release()?,
    };
    let report = measure(args, &programs)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    ensure!(!args.check || report.meets_targets(), "a target is missed");
    Ok(())
}

/// Loads a server with the cluster, and measures it.
///
/// # Errors
/// Fails when something is wrong: a pod is not served, is sent to another node, or STS is called
/// otherwise than once for each identity.
pub fn measure(args: &Args, programs: &Programs) -> Result<Report> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    process::allow_files(args.nodes + 1_000)?;
    let scratch = tempfile::Builder::new()
        .prefix("kiam-test-load-")
        .tempdir()
        .context("cannot make a folder")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(load(args, programs, scratch.path()))
}

async fn load(args: &Args, programs: &Programs, scratch: &Path) -> Result<Report> {
    let fleet = Fleet {
        pods: args.pods,
        nodes: args.nodes,
        namespaces: args.namespaces,
        roles: args.roles.min(args.pods),
    };
    let quiet = Duration::from_secs(args.quiet);
    let authority = Arc::new(Authority::new("kiam")?);
    let empty = Fleet {
        pods: 0,
        namespaces: 0,
        ..fleet
    };
    let idle = Stand::begin(empty, programs, None, &authority, &scratch.join("empty")).await?;
    sleep(quiet).await;
    let empty_rss_bytes = idle.server.memory()?;
    drop(idle);

    let started = Instant::now();
    let stand = Stand::begin(
        fleet,
        programs,
        args.under.as_deref(),
        &authority,
        &scratch.join("full"),
    )
    .await?;
    let startup = started.elapsed();
    sleep(quiet).await;
    let pods_rss_bytes = stand.server.memory()?;

    let connecting = Instant::now();
    let folder = scratch.join("nodes");
    let mut agents = Agents::connect(fleet, stand.bind, &authority, &folder).await?;
    agents.wait_for(fleet.pods, SETTLE_LIMIT).await?;
    let settled = connecting.elapsed();
    sleep(quiet).await;
    let idle_cpu = stand.server.cpu_over(quiet).await?;
    let full_rss_bytes = stand.server.memory()?;

    let before = stand.server.cpu()?;
    let churning = Instant::now();
    let new_roles = churn(args, &stand, &mut agents).await?;
    let churn_cpu = (stand.server.cpu()? - before).as_secs_f64() / churning.elapsed().as_secs_f64();

    let identities = fleet.roles + new_roles;
    let sts_calls = stand.sts.assume_role_calls();
    ensure!(
        sts_calls == identities,
        "STS was called {sts_calls} times for {identities} identities"
    );
    let lists = stand.api.lists_of_pods();
    ensure!(lists == 1, "the server listed the pods {lists} times");
    // In order: a profiler writes what it has seen at the end.
    stand.server.stop()?;
    Ok(Report::new(&report::Figures {
        args,
        identities,
        sts_calls,
        startup,
        settled,
        empty_rss_bytes,
        pods_rss_bytes,
        full_rss_bytes,
        idle_cpu,
        churn_cpu,
        pushed: &agents.pushed(),
    }))
}

/// Creates and deletes pods. Returns the number of new roles.
async fn churn(args: &Args, stand: &Stand, agents: &mut Agents) -> Result<u64> {
    let fleet = stand.fleet;
    let count = u64::from(args.rate) * args.seconds;
    let stay = u64::from(args.rate) * STAY.as_secs();
    let role_of = |number: u64| {
        if number.is_multiple_of(NEW_ROLE_EVERY) {
            fleet.roles + number / NEW_ROLE_EVERY
        } else {
            number % fleet.roles
        }
    };
    let served = agents.served();
    let mut ticks = interval(Duration::from_secs(1) / args.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..count + stay.min(count) {
        ticks.tick().await;
        if number < count {
            let pod = fleet.pods + number;
            agents.bound(pod);
            stand
                .api
                .publish("ADDED", &fleet.pod(pod, role_of(number), false))?;
        }
        if let Some(gone) = number.checked_sub(stay.min(count)) {
            let pod = fleet.pods + gone;
            stand
                .api
                .publish("DELETED", &fleet.pod(pod, role_of(gone), false))?;
        }
    }
    agents.wait_for(served + count, PUSH_LIMIT).await?;
    let waiting = agents.waiting();
    ensure!(waiting == 0, "{waiting} pods' credentials never came");
    Ok(count.div_ceil(NEW_ROLE_EVERY))
}

/// A server and the doubles that it uses.
struct Stand {
    server: Server,
    bind: SocketAddr,
    api: Api,
    sts: Sts,
    fleet: Fleet,
}

impl Stand {
    async fn begin(
        fleet: Fleet,
        programs: &Programs,
        under: Option<&str>,
        authority: &Authority,
        folder: &Path,
    ) -> Result<Self> {
        let tls = authority.write_server(folder)?;
        let api = Api::start(fleet).await?;
        let kubeconfig: PathBuf = api.kubeconfig(folder)?;
        let sts = Sts::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
        let server = Server::start(programs, under, &tls, &kubeconfig, &sts)?;
        let bind = server.ready(SETTLE_LIMIT).await?;
        Ok(Self {
            server,
            bind,
            api,
            sts,
            fleet,
        })
    }
}
