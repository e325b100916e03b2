//! `cargo xtask demo`: shows kiam on a node.
//!
//! Four pods in three namespaces each run the same unmodified AWS CLI. Two get their own roles'
//! credentials; one wants a role that its namespace does not permit, and one is in a namespace that
//! permits none. Server and agent are the real programs, the kernel programs are real; STS is a
//! double, and so is the node's own metadata service, which counts its connections and bytes.

mod page;
mod pods;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::Instant;
use toolchain::{AWS, Consent, kernel, prepare};

use page::Page;
use pods::{DemoPod, DemoPods};
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{METADATA_PORT, Programs, SERVER_PORT};
use testbed::probe::{METADATA_SERVICE, Outcome, Prober};
use testbed::sandbox;
use testbed::sandbox::{CONTROL_IP, Finished, NodeOptions, run as run_program};

/// Flags of `cargo xtask demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Leave everything running and print commands to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

const CLIENT_LIMIT: Duration = Duration::from_secs(60);
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Log level at which the agent reports the pod of each connection.
const AGENT_LOG: [&str; 2] = ["--json-log", "--level=info,kiam_agent::caller=debug"];

/// Runs the command.
///
/// # Errors
/// Fails when something cannot be set up, or a result differs from the expected one.
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        AWS.plan(plan)
    })?;
    let programs = Programs::build()?;
    let begin = Instant::now();
    let page = Page::new();
    page.title();

    let cluster = FileCluster::new(&programs)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let pods = DemoPods::create(&cluster, &node)?;
    page.set(
        "node",
        node.node().ip(),
        "a network namespace; its pods have namespaces and cgroups of their own",
    );
    page.set(
        "STS",
        cluster.sts().url(),
        "a stand-in that checks every signature",
    );
    let started = Instant::now();
    let server = cluster.start_server(&[])?;
    let did = format!(
        "reads cluster.yaml, assumes roles; ready in {}",
        page::took(started)
    );
    page.set("kiam-server", format!("{CONTROL_IP}:{SERVER_PORT}"), &did);
    let started = Instant::now();
    let agent = cluster.start_agent(&node, &AGENT_LOG)?;
    let did = format!("guards the node's pods; ready in {}", page::took(started));
    page.set(
        "kiam-agent",
        format!("{}:{METADATA_PORT}", node.node().ip()),
        &did,
    );

    page.heading("Four pods run the same unmodified AWS CLI, with nothing configured");
    page.command("aws sts get-caller-identity");
    let clients = ask_as_all(&cluster, &pods)?;
    let mut as_expected = Vec::new();
    for (demo_pod, client) in pods.all().iter().zip(clients) {
        page.pod(demo_pod);
        let seen = pods::connections(agent.program(), demo_pod.pod())?;
        page.kernel(
            demo_pod.pod(),
            seen.first()
                .context("the kernel saw no connection of the pod")?,
        );
        as_expected.push(if demo_pod.is_permitted() {
            granted(&page, demo_pod, &client)
        } else {
            forbidden(&page, &pods, demo_pod, &client)?
        });
    }

    page.heading("Other callers are refused");
    as_expected.extend(other_callers(&page, &cluster, &node, &pods)?);

    page.heading("Traffic that reached the node's own metadata service");
    let traffic = node.imds().traffic();
    page.traffic(traffic.connections(), traffic.bytes());
    as_expected.push(traffic.connections() == 0);
    page.end(begin);

    ensure!(
        as_expected.iter().all(|good| *good),
        "a result differs from the expected one"
    );
    if args.keep {
        for (program, name) in [
            (server.program(), "kiam-server"),
            (agent.program(), "kiam-agent"),
        ] {
            program.tee(&cluster.sandbox().scratch().join(format!("{name}.log")))?;
        }
        page.show_commands(&pods, cluster.sandbox().scratch());
        wait_for_interrupt()?;
        page.goodbye();
    }
    Ok(())
}

/// All at once, as they would be.
fn ask_as_all(cluster: &FileCluster, pods: &DemoPods) -> Result<Vec<Finished>> {
    let ask = |demo_pod: &DemoPod| {
        let mut command = demo_pod.pod().place().command(AWS.program("aws"));
        command
            .args(["sts", "get-caller-identity", "--query=Arn", "--output=text"])
            .env_clear()
            .envs(pods::environment(cluster)?);
        run_program("the AWS CLI", command, CLIENT_LIMIT)
    };
    std::thread::scope(|scope| {
        let pods = pods.all().iter();
        let clients: Vec<_> = pods
            .map(|demo_pod| scope.spawn(move || ask(demo_pod)))
            .collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, _>| {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        clients.into_iter().map(join).collect()
    })
}

fn granted(page: &Page, demo_pod: &DemoPod, client: &Finished) -> bool {
    let arn = client.stdout.trim();
    let own = arn.contains(&format!(":assumed-role/{}/", demo_pod.wants()));
    if own {
        page.got(arn);
    } else {
        page.wrong(&format!("{arn}{}", client.stderr.trim()));
    }
    own
}

fn forbidden(page: &Page, pods: &DemoPods, demo_pod: &DemoPod, client: &Finished) -> Result<bool> {
    let url = format!("{METADATA_SERVICE}{ROLES}{}", demo_pod.wants());
    let answer = Prober::new()?.get(demo_pod.pod().place(), &url)?.answer()?;
    page.refused(answer.status, answer.body.trim());
    page.cli_error(client.stderr.trim());
    page.fix(&pods.obstacle(demo_pod)?);
    let refused = answer.status == 403 && answer.body.contains("iam.amazonaws.com/permitted");
    Ok(refused && !client.status.success())
}

/// Requests of other callers, all of which must fail.
fn other_callers(
    page: &Page,
    cluster: &FileCluster,
    node: &FileClusterNode,
    pods: &DemoPods,
) -> Result<Vec<bool>> {
    let prober = Prober::new()?;
    let [first, second, ..] = pods.all() else {
        anyhow::bail!("the demo has fewer than two pods");
    };
    let pod = first.pod().place();
    let stray = pod.with_cgroup(node.node().kubepods().child("stray.scope")?);
    let metadata = format!("{METADATA_SERVICE}{ROLES}");
    let agent = format!("http://{}:{METADATA_PORT}{ROLES}", node.node().ip());
    // The kernel identifies no caller that connects to the port without the redirect: the agent
    // answers 503, as that may pass.
    let tries = [
        (
            format!("{} requests {}", first.name(), second.wants()),
            pod,
            format!("{metadata}{}", second.wants()),
            403,
        ),
        (
            format!("{} requests the node's role", first.name()),
            pod,
            format!("{metadata}{NODE_ROLE}"),
            403,
        ),
        (
            "a process in a pod's network, in no pod's cgroup".to_owned(),
            &stray,
            metadata.clone(),
            403,
        ),
        (
            "a process of the node, at the agent's port".to_owned(),
            node.node().place(),
            agent.clone(),
            503,
        ),
        (
            "another host on the network, at the agent's port".to_owned(),
            cluster.sandbox().control(),
            agent,
            503,
        ),
    ];
    let mut refused = Vec::new();
    for (who, place, url, status) in tries {
        let outcome = prober.get(place, &url)?;
        let good = matches!(&outcome, Outcome::Answer(answer) if answer.status == status);
        page.outcome(&who, &outcome, good);
        refused.push(good);
    }
    Ok(refused)
}

fn wait_for_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::from_raw(Signal::SIGINT as i32))?;
        let mut terminate = signal(SignalKind::from_raw(Signal::SIGTERM as i32))?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}
