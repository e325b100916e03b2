//! Level 2 of `cargo xtask node`: a real Kubernetes cluster whose nodes are machines, with kiam on
//! it as helm installs the chart.
//!
//! ```text
//!  sandbox's control namespace ── etcd, API server, controllers, scheduler, DNS, STS
//!     │ bridge                     169.254.169.254: the nodes' own metadata service
//!     ├── node1  machine: systemd, containerd, kubelet, kube-proxy, bridge CNI
//!     │     ├── pod   kiam's agents and servers; pods that ask for credentials
//!     │     └── pod
//!     └── node2 …
//! ```
//!
//! Only AWS and the cluster's DNS are stand-ins. Everything is made in a sandbox and goes with it.

mod args;
mod checks;
mod identity;
mod kubectl;
mod names;
mod payload;
mod pods;
mod table;
mod vpc;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::{Accelerator, Kernel, Root};
pub(super) use args::Args;
use identity::Identity;
use kubectl::Kubectl;
use names::Names;
use payload::KiamImage;
use pods::Answer;
use table::Table;
use testbed::cluster::ControlPlane;
use testbed::doubles::sts::ACCOUNT;
use testbed::image;
use testbed::sandbox::{CONTROL_IP, Sandbox};
use vpc::Vpc;
use worker::Worker;

/// The chart's release and its namespace, as the documents have them.
const RELEASE: &str = "kiam";
const RELEASE_NAMESPACE: &str = "kube-system";
const CHART: &str = "deploy/helm/kiam";
const REPOSITORY: &str = "registry.example.com/kiam";
/// Time for the probes of emulated processors.
const PROBE_TIMES: [&str; 6] = [
    "server.livenessProbe.initialDelaySeconds=60",
    "server.livenessProbe.timeoutSeconds=20",
    "server.readinessProbe.timeoutSeconds=20",
    "agent.livenessProbe.initialDelaySeconds=60",
    "agent.livenessProbe.timeoutSeconds=20",
    "agent.readinessProbe.timeoutSeconds=20",
];
/// Limits for what controllers, kubelet and containerd do, by KVM.
const STEP: Duration = Duration::from_secs(30);

/// A cluster to be made.
#[derive(Debug, Clone)]
struct Run {
    args: Args,
    kernel: Kernel,
    root: Root,
    accelerator: Accelerator,
    image: PathBuf,
}

/// Result of a check.
#[derive(Debug, Clone)]
struct Outcome {
    check: &'static str,
    /// Reason for which it failed.
    failure: Option<String>,
    /// True if other checks depend on it.
    needed: bool,
}

/// Makes a cluster with each kernel, one after the other, and checks kiam there.
///
/// # Errors
/// Fails when there is no image.
pub(super) fn command(
    args: &Args,
    kernels: &[Kernel],
    root: &Root,
    accelerator: Accelerator,
) -> Result<Table> {
    let image = match &args.image {
        Some(image) => image.clone(),
        None => image::made()?.archive,
    };
    let mut table = Table::new(args.planted);
    for kernel in kernels {
        let run = Run {
            args: args.clone(),
            kernel: kernel.clone(),
            root: root.clone(),
            accelerator,
            image: image.clone(),
        };
        let title = args.title(kernel);
        match outcomes(run) {
            Ok(outcomes) => table.add(&title, outcomes),
            Err(error) => table.add_failure(&title, &format!("{error:#}")),
        }
    }
    Ok(table)
}

/// A running cluster.
#[derive(Debug)]
struct Cluster {
    run: Run,
    // Dropped in this order: machines, then what they speak to.
    workers: Vec<Worker>,
    kubectl: Kubectl,
    vpc: Vpc,
    _names: Names,
    plane: ControlPlane,
    /// Images of kiam; the last one is installed.
    images: Vec<KiamImage>,
    /// Packets to the nodes' metadata service that are allowed so far.
    allowed: usize,
    _sandbox: Sandbox,
}

/// Makes a cluster, installs kiam and checks it.
#[expect(clippy::print_stdout, reason = "for the terminal")]
fn outcomes(run: Run) -> Result<Vec<Outcome>> {
    let begin = Instant::now();
    let mut cluster = Cluster::start(run)?;
    println!(
        "{}: a node of the cluster after {} s",
        cluster.run.kernel.release,
        begin.elapsed().as_secs()
    );
    let mut outcomes = Vec::new();
    let planted = cluster.run.args.planted;
    for check in checks::list(&cluster.run.args) {
        let begin = Instant::now();
        let result = (check.run)(&mut cluster);
        let failure = result.err().map(|error| format!("{error:#}"));
        let sign = failure.as_ref().map_or("ok", |_| "FAILED");
        println!(
            "{:5} s  {sign:6}  {}",
            begin.elapsed().as_secs(),
            check.name
        );
        if let Some(failure) = failure.as_ref().filter(|_| !planted || check.needed) {
            println!("{failure}");
        }
        let fatal = failure.is_some() && check.needed;
        if fatal {
            println!("{}", cluster.state());
        }
        outcomes.push(Outcome {
            check: check.name,
            failure,
            needed: check.needed,
        });
        if fatal {
            break;
        }
    }
    Ok(outcomes)
}

impl Cluster {
    fn start(run: Run) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let control = sandbox.control().netns().clone();
        let vpc = Vpc::start(&sandbox)?;
        let mut plane = ControlPlane::start(&sandbox)?;
        control.block_on(async || plane.ready().await.map(drop))??;
        plane.start_controllers()?;
        let kubectl = Kubectl::new(&sandbox, &plane)?;
        let names = Names::follow(&sandbox, kubectl.kubeconfig())?;
        let mut images = vec![KiamImage {
            archive: run.image.clone(),
            name: format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION")),
        }];
        images.extend(run.args.before.iter().map(|archive| KiamImage {
            archive: archive.clone(),
            name: format!("{REPOSITORY}:before"),
        }));
        let identities: Vec<_> = (1..=run.args.nodes).map(Identity::new).collect();
        let disk = payload::make(&sandbox, &plane, &identities, &images)?;
        let base = (&run.kernel, &run.root, run.accelerator);
        let settings = &run.args.settings;
        let start = |identity| Worker::start(&sandbox, base, identity, &disk, settings, &images);
        let workers = identities.into_iter().map(start).collect::<Result<_>>()?;
        let cluster = Self {
            run,
            workers,
            kubectl,
            vpc,
            _names: names,
            plane,
            images,
            allowed: 0,
            _sandbox: sandbox,
        };
        cluster.node_ready()?;
        Ok(cluster)
    }

    /// Scales a limit to the accelerator of the nodes.
    fn limit(&self, by_kvm: Duration) -> Duration {
        by_kvm * self.run.accelerator.patience()
    }

    fn node(&self) -> &Worker {
        &self.workers[0]
    }

    /// Name of the image that is installed.
    fn image(&self) -> Result<&str> {
        let image = self.images.last().context("there is no image")?;
        Ok(&image.name)
    }

    /// Waits until the nodes are ready.
    fn node_ready(&self) -> Result<()> {
        for worker in &self.workers {
            let ready = |node: &serde_json::Value| {
                let conditions = node["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            let args = ["node", worker.name()];
            let waited = self.kubectl.wait("ready", &args, self.limit(STEP), ready);
            waited.with_context(|| {
                let kubelet = worker.check("journalctl -u kubelet -u containerd -n 40 --no-pager");
                kubelet.unwrap_or_else(|error| format!("{error:#}"))
            })?;
        }
        Ok(())
    }

    /// Fails unless each of a container's answers names this role.
    fn all_of(&self, log: &str, role: &str) -> Result<Vec<Answer>> {
        pods::all_of(log, role, self.run.args.identified_by())
    }

    /// The role that a check expects of pods with `iam.amazonaws.com/role: NAME-role`: another one
    /// if checks have to fail.
    fn role(&self, name: &str) -> String {
        if self.run.args.planted {
            "planted-role".to_owned()
        } else {
            format!("{name}-role")
        }
    }

    /// Installs the chart, or upgrades it to other values.
    fn helm(&self, command: &[&str], more: &[&str]) -> Result<()> {
        let keys = self.vpc.sts().server_keys();
        let repository = format!("image.repository={REPOSITORY}");
        let base = format!("server.roleBaseArn=arn:aws:iam::{ACCOUNT}:role/");
        let tag = self.image()?.rsplit(':').next().unwrap_or_default();
        let tag = format!("image.tag={tag}");
        // What AWS is here.
        let here = serde_json::json!([
            { "name": "AWS_ENDPOINT_URL_STS", "value": self.vpc.sts().url() },
            { "name": "AWS_ACCESS_KEY_ID", "value": keys.access_key },
            { "name": "AWS_SECRET_ACCESS_KEY", "value": keys.secret_key },
        ]);
        let here = format!("server.extraEnv={here}");
        let mut args = command.to_vec();
        args.extend([RELEASE, CHART, "--namespace", RELEASE_NAMESPACE]);
        for value in [&repository, &base, &tag, "server.region=eu-west-1"] {
            args.extend(["--set", value]);
        }
        args.extend(["--set-json", &here]);
        for value in PROBE_TIMES {
            args.extend(["--set", value]);
        }
        for value in &self.run.args.set {
            args.extend(["--set", value]);
        }
        args.extend(more);
        self.kubectl.helm(&args, self.limit(STEP)).map(drop)
    }

    /// Waits until the release's servers and agents are as they should be.
    fn rolled_out(&self) -> Result<()> {
        for what in ["deployment/kiam-server", "daemonset/kiam-agent"] {
            let limit = self.limit(STEP);
            let timeout = format!("--timeout={}s", limit.as_secs());
            let args = ["-n", RELEASE_NAMESPACE, "rollout", "status", what, &timeout];
            self.kubectl.run_for(&args, limit + STEP)?;
        }
        Ok(())
    }

    /// State of the cluster, for the report of a failure.
    fn state(&self) -> String {
        let mut text = String::new();
        for args in [
            &["get", "pods", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "-n",
                RELEASE_NAMESPACE,
                "logs",
                "daemonset/kiam-agent",
                "--all-containers",
                "--tail=30",
            ],
            &[
                "-n",
                RELEASE_NAMESPACE,
                "logs",
                "deployment/kiam-server",
                "--tail=30",
            ],
        ] {
            let output = self.kubectl.run(args);
            text += &output.unwrap_or_else(|error| format!("{error:#}\n"));
        }
        text + &self.plane.tails()
    }
}

/// Address of the cluster's DNS server in pods.
const DNS: std::net::SocketAddr = std::net::SocketAddr::new(CONTROL_IP, 53);
