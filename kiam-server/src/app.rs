//! Assembly of the server: validates the configuration, binds all ports, then serves.

mod descriptions;
mod drain;
mod health;
mod reports;
mod roles;
mod taint;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiam_common::admin::Admin;
use kiam_common::api;
use kiam_common::api::legacy::kiam_service_server::KiamServiceServer;
use kiam_common::api::node::v1::node_service_server::NodeServiceServer;
use kiam_common::duration;
use kiam_common::metrics::Registry;
use kiam_common::readiness::Readiness;
use kiam_common::role::RoleError;
use kiam_common::tasks::{TaskError, Tasks};
use kiam_common::tls::{Acceptor, ServerTls, TlsError, TlsMetrics, TlsSide};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpListener;

pub use descriptions::descriptions;

use crate::args::{Args, ClusterFlags, NodeAuthorization, NodeFlags};
use crate::clock::SystemClock;
use crate::cluster::Cluster;
use crate::credentials::{
    CredentialAges, ExpiryContract, Issuer, Limits, ScheduleError, Store, StoreMetrics,
};
use crate::ec2::Ec2Error;
use crate::legacy::{Leases, LegacyService};
use crate::node::proof::{NodeProof, ReviewMetrics, TokenProof, Tokens};
use crate::node::{Service, StreamAge, StreamMetrics};
use crate::report::AuditError;
use crate::source::{FileError, Files, SourceFlag, WatchMetrics, Watches};
use crate::status::Status;
use crate::sts::Sts;

/// The time for tasks to stop. Agents have moved to another server by then.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// The limits of calls to STS.
const LIMITS: Limits = Limits {
    concurrency: 16,
    per_second: 100.0,
};

/// The error of a server that cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The session durations are inconsistent.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The sessions are longer than role chaining allows.
    #[error(
        "--{flag} is {}; with --assume-role-arn AWS allows at most 1h (role chaining)", duration::format(*duration)
    )]
    Chaining {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        duration: Duration,
    },
    /// A role or base ARN is invalid.
    #[error("invalid --{flag} {text:?}: {source}")]
    Role {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        text: String,
        /// The cause.
        source: RoleError,
    },
    /// The base ARN could not be detected.
    #[error("--role-base-arn-autodetect: {0}")]
    Ec2(#[from] Ec2Error),
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be bound.
    #[error("cannot listen on {flag} {address}: {source}")]
    Listen {
        /// The flag that contains the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// The files of `--source` cannot be read.
    #[error("--source: {0}")]
    Files(#[from] FileError),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: kube::config::KubeconfigError,
    },
    /// No configuration of a Kubernetes API was found.
    #[error(
        "found no Kubernetes API: {0}; run in a cluster, set --kubeconfig, or use --source=file:PATH"
    )]
    NoCluster(kube::config::InferConfigError),
    /// The client of the Kubernetes API cannot be created.
    #[error("cannot create a client of the Kubernetes API: {0}")]
    Client(kube::Error),
    /// Tokens cannot be reviewed without a Kubernetes API.
    #[error(
        "--node-authorization=token needs a Kubernetes API to review tokens, which --source=file does not provide; use --node-authorization=certificate"
    )]
    TokenWithoutApi,
    /// Taints cannot be changed without a Kubernetes API.
    #[error(
        "--node-taint needs a Kubernetes API, which --source=file does not provide; remove one of the flags"
    )]
    TaintWithoutApi,
    /// The audit log cannot be opened.
    #[error("--audit-log: {0}")]
    Audit(#[from] AuditError),
    /// A metric is registered already.
    #[error("cannot register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The descriptors for gRPC reflection are invalid.
    #[error("cannot serve gRPC reflection: {0}")]
    Reflection(tonic_reflection::server::Error),
    /// The address of a socket cannot be read.
    #[error("cannot read the address of a socket: {0}")]
    Socket(std::io::Error),
}

impl StartError {
    /// Returns whether other flags or files would avoid the error.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Schedule(_)
            | Self::Chaining { .. }
            | Self::Role { .. }
            | Self::Tls(_)
            | Self::Kubeconfig { .. }
            | Self::NoCluster(_)
            | Self::Client(_)
            | Self::TokenWithoutApi
            | Self::TaintWithoutApi => true,
            // An address of another machine; a port in use is a state of this one.
            Self::Listen { source, .. } => source.kind() == std::io::ErrorKind::AddrNotAvailable,
            Self::Files(error) => error.is_usage(),
            Self::Audit(error) => error.is_usage(),
            Self::Ec2(_) | Self::Metrics(_) | Self::Reflection(_) | Self::Socket(_) => false,
        }
    }
}

/// A server that accepts connections.
#[derive(Debug)]
pub struct Bound {
    /// The address for agents.
    pub address: SocketAddr,
    /// The address of the admin port.
    pub admin: Option<SocketAddr>,
    tasks: Tasks,
}

impl Bound {
    /// Runs until `stop` resolves or a task ends.
    ///
    /// # Errors
    /// When a task ended by itself, or did not stop in time.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let failed = tokio::select! {
            () = stop => None,
            failed = self.tasks.failed() => Some(failed),
        };
        match &failed {
            None => tracing::info!("stopping"),
            Some(error) => tracing::error!("stopping: {error}"),
        }
        let stopped = self.tasks.shut_down(SHUTDOWN_GRACE).await;
        failed.map_or(stopped, Err)
    }
}

/// Starts the server. Returns once it accepts connections; it is ready after it has read the
/// cluster.
///
/// # Errors
/// When a flag, a file, a certificate or an address cannot be used.
pub async fn build(args: Args) -> Result<Bound, StartError> {
    Box::pin(build_with(args, None)).await
}

/// Like [`build`], with an issuer in place of STS.
///
/// # Errors
/// The same as [`build`].
pub async fn build_with(args: Args, issuer: Option<Arc<dyn Issuer>>) -> Result<Bound, StartError> {
    let Args {
        bind,
        tls,
        cluster: cluster_flags,
        nodes,
        roles,
        telemetry,
        audit_log,
        compat,
    } = args;
    for (flag, why) in compat.given() {
        tracing::warn!("{flag} has no effect, unlike in kiam: {why}");
    }
    let registry = kiam_common::telemetry::registry()?;
    let readiness = Readiness::new();
    let mut tasks = Tasks::new();

    let contract = ExpiryContract::new(roles.session_duration, roles.session_refresh)?;
    let base = roles.base_arn().await?;
    let options = roles.permission_options(base.as_ref());
    let sts = roles.sts(base.as_ref())?;
    let settings = Arc::new(roles.settings(base));
    let tls = ServerTls::server(tls, TlsMetrics::new(TlsSide::Server, &registry)?)?;
    let listener = listen("--bind", bind).await?;
    let address = listener.local_addr().map_err(StartError::Socket)?;

    let cluster = Arc::new(Cluster::new());
    let synced = readiness.awaits("the cluster's objects");
    let client = match &cluster_flags.source {
        SourceFlag::Kubernetes => {
            let client = kubernetes(&cluster_flags).await?;
            let watches = Watches::new(
                client.clone(),
                Arc::clone(&cluster),
                options,
                WatchMetrics::new(&registry, Arc::new(SystemClock))?,
            );
            watches.spawn(&mut tasks);
            Some(client)
        }
        SourceFlag::Files(path) => {
            let files = Files::new(path.clone(), Arc::clone(&cluster), options)?;
            tasks.spawn("source files", files.run(tasks.stop()));
            None
        }
    };
    let reports = reports::start(&audit_log, client.clone(), &cluster, &registry, &mut tasks)?;
    let proof = node_proof(&nodes, client.clone(), &cluster, &registry)?;

    let issuer = match issuer {
        Some(issuer) => issuer,
        None => Arc::new(Sts::from_environment(sts).await),
    };
    let store = Arc::new(Store::new(
        issuer,
        Arc::new(SystemClock),
        rand::random::<f64>,
        contract,
        LIMITS,
        StoreMetrics::new(&registry)?,
    ));
    CredentialAges::register(&registry, Arc::clone(&store), Arc::new(SystemClock))?;
    let legacy = nodes.legacy_agents.then(|| {
        tracing::warn!(
            "--legacy-agents: agents of kiam v4 do not prove their node, and can get the \
             credentials of any pod; remove the flag after the migration"
        );
        let leases = Leases::new(Arc::clone(&store), roles.session_duration);
        let clock = Arc::new(SystemClock);
        let service =
            LegacyService::new(Arc::clone(&cluster), Arc::clone(&settings), leases, clock);
        KiamServiceServer::new(service)
    });
    let service = Service::new(
        Arc::clone(&cluster),
        Arc::clone(&store),
        Arc::clone(&settings),
        proof,
        StreamAge {
            max: nodes.grpc_max_connection_age_duration,
            random: rand::random::<f64>,
        },
        StreamMetrics::new(&registry)?,
        tasks.stop(),
    )
    .with_reports(reports);
    taint::start(&nodes, client, service.streams(), &registry, &mut tasks)?;
    let status = Status::new(
        Arc::clone(&cluster),
        store,
        settings,
        service.streams(),
        Arc::new(SystemClock),
    );
    let (acceptor, incoming) = Acceptor::new(listener, Arc::clone(&tls));
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(StartError::Reflection)?;
    let stop = tasks.stop();
    tasks.spawn("certificates", tls.run(tasks.stop()));
    tasks.spawn("TLS acceptor", acceptor.run(tasks.stop()));
    tasks.spawn("gRPC server", async move {
        let server = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(service))
            .add_optional_service(legacy)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        drain::until_drained(server, stop).await;
    });
    let stop = tasks.stop();
    tasks.spawn(
        "health service",
        health::report(reporter, cluster, synced, stop),
    );

    let mut admin_address = None;
    if let Some(address) = telemetry.prometheus_listen_addr {
        let admin =
            Admin::bind(address, registry, readiness).map_err(|source| StartError::Listen {
                flag: "--prometheus-listen-addr",
                address,
                source,
            })?;
        admin_address = Some(admin.address().map_err(StartError::Socket)?);
        let pages = vec![status.page()];
        tasks.spawn("admin port", admin.run(pages, tasks.stop()));
    }
    tracing::info!(%address, admin = ?admin_address, "serving agents");
    Ok(Bound {
        address,
        admin: admin_address,
        tasks,
    })
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        flag,
        address,
        source,
    })
}

pub(crate) async fn kubernetes(flags: &ClusterFlags) -> Result<kube::Client, StartError> {
    let config = match &flags.kubeconfig {
        Some(path) => {
            let error = |source| StartError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(error)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(error)?
        }
        None => kube::Config::infer().await.map_err(StartError::NoCluster)?,
    };
    kube::Client::try_from(config).map_err(StartError::Client)
}

fn node_proof(
    flags: &NodeFlags,
    client: Option<kube::Client>,
    cluster: &Arc<Cluster>,
    registry: &Registry,
) -> Result<NodeProof, StartError> {
    Ok(match flags.node_authorization {
        NodeAuthorization::Token => {
            let client = client.ok_or(StartError::TokenWithoutApi)?;
            let account = &flags.agent_service_account;
            NodeProof::Token(Arc::new(TokenProof::new(
                Arc::new(Tokens::new(client)),
                Arc::clone(cluster),
                flags.token_audience.clone(),
                (&account.namespace, &account.name),
                Arc::new(SystemClock),
                ReviewMetrics::new(registry)?,
            )))
        }
        NodeAuthorization::Certificate => NodeProof::Certificate,
        NodeAuthorization::None => {
            tracing::warn!(
                "--node-authorization=none: every client with a certificate of --ca can get the \
                 credentials of the pods of every node"
            );
            NodeProof::None
        }
    })
}
