//! The server, put together: everything is bound and checked first, then it runs.

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
use kiam_common::readiness::Readiness;
use kiam_common::role::RoleError;
use kiam_common::tasks::{TaskError, Tasks};
use kiam_common::tls::{Acceptor, ServerTls, TlsError, TlsMetrics, TlsSide};
use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus::Registry;
use tokio::net::TcpListener;

use crate::args::{Args, ClusterFlags, NodeAuthorization, NodeFlags};
use crate::clock::SystemClock;
use crate::cluster::Cluster;
use crate::credentials::{
    CredentialAges, ExpiryContract, Issuer, Limits, ScheduleError, Store, StoreMetrics,
};
use crate::instance::InstanceError;
use crate::legacy::{Holds, LegacyService};
use crate::node::proof::{NodeProof, ReviewMetrics, TokenProof, Tokens};
use crate::node::{Service, StreamAge, StreamMetrics};
use crate::report::AuditError;
use crate::source::{FileError, Files, SourceFlag, WatchMetrics, Watches};
use crate::status::Status;
use crate::sts::Sts;

/// Agents find another server meanwhile.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    concurrency: 16,
    per_second: 100.0,
};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Durations that make no sense.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Longer sessions than there can be.
    #[error(
        "--{flag} is {}; with --assume-role-arn AWS allows one hour, since sessions of a session (role chaining) last no longer", duration::format(*duration)
    )]
    Chaining {
        /// The flag.
        flag: &'static str,
        /// What it says.
        duration: Duration,
    },
    /// A role or base ARN that is none.
    #[error("--{flag} {text:?} cannot be used: {source}")]
    Role {
        /// The flag.
        flag: &'static str,
        /// As given.
        text: String,
        /// Why.
        source: RoleError,
    },
    /// A base ARN that could not be detected.
    #[error("--role-base-arn-autodetect: {0}")]
    Instance(#[from] InstanceError),
    /// TLS files that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address that cannot be bound.
    #[error("cannot listen on {flag} {address}: {source}")]
    Listen {
        /// The flag that named it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Files that cannot be read at all.
    #[error("--source: {0}")]
    Files(#[from] FileError),
    /// A kubeconfig that cannot be used.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// Nothing says how to reach the API.
    #[error(
        "no Kubernetes API is known: {0}; run in a cluster, give --kubeconfig, or use --source=file:PATH"
    )]
    NoCluster(kube::config::InferConfigError),
    /// The API's client cannot be made.
    #[error("cannot make a client of the Kubernetes API: {0}")]
    Client(kube::Error),
    /// Tokens need an API to check them.
    #[error(
        "--node-authorization=token needs a Kubernetes API to check tokens with, which --source=file has not; use --node-authorization=certificate"
    )]
    TokenWithoutApi,
    /// Taints are the API's.
    #[error("--node-taint needs a Kubernetes API, which --source=file has not")]
    TaintWithoutApi,
    /// An audit log that cannot be written.
    #[error("--audit-log: {0}")]
    Audit(#[from] AuditError),
    /// A metric was registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The services' own description cannot be read.
    #[error("cannot describe the services: {0}")]
    Reflection(tonic_reflection::server::Error),
    /// A socket is gone.
    #[error("cannot read a socket's address: {0}")]
    Socket(std::io::Error),
}

/// A server that runs.
#[derive(Debug)]
pub struct Bound {
    /// Where agents reach it.
    pub address: SocketAddr,
    /// Where the operator does.
    pub admin: Option<SocketAddr>,
    tasks: Tasks,
}

impl Bound {
    /// Runs until `interrupted` resolves, or something that must not end does.
    ///
    /// # Errors
    /// When a task ended by itself, or did not stop in time.
    pub async fn run_until(
        mut self,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(), TaskError> {
        let failed = tokio::select! {
            () = interrupted => None,
            failed = self.tasks.failed() => Some(failed),
        };
        let stopped = self.tasks.shut_down(SHUTDOWN_GRACE).await;
        failed.map_or(stopped, Err)
    }
}

/// Puts the server together. Returns once it accepts connections; it is ready when it has read
/// the cluster.
///
/// # Errors
/// When a flag, a file, a certificate or an address cannot be used.
pub async fn build(args: Args) -> Result<Bound, StartError> {
    Box::pin(build_with(args, None)).await
}

/// As [`build`], with another source of credentials than STS.
///
/// # Errors
/// As [`build`].
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
        tracing::warn!("{flag} of kiam has no effect here: {why}");
    }
    let registry = kiam_common::telemetry::registry()?;
    let readiness = Readiness::new();
    let mut tasks = Tasks::new();

    let contract = ExpiryContract::new(roles.session_duration, roles.session_refresh)?;
    let base = roles.base_arn().await?;
    let reading = roles.reading(base.as_ref());
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
                reading,
                WatchMetrics::new(&registry, Arc::new(SystemClock))?,
            );
            tasks.spawn("watches", watches.run(tasks.stop()));
            Some(client)
        }
        SourceFlag::Files(path) => {
            let files = Files::new(path.clone(), Arc::clone(&cluster), reading)?;
            tasks.spawn("files", files.run(tasks.stop()));
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
            "--legacy-agents: agents of kiam v4 prove no node, and get the credentials of any pod \
             whose address they name; take the flag away when the last of them is gone"
        );
        let holds = Holds::new(Arc::clone(&store), roles.session_duration);
        let clock = Arc::new(SystemClock);
        let service = LegacyService::new(Arc::clone(&cluster), Arc::clone(&settings), holds, clock);
        KiamServiceServer::new(service)
    });
    let service = Service::new(
        Arc::clone(&cluster),
        Arc::clone(&store),
        Arc::clone(&settings),
        proof,
        StreamAge {
            most: nodes.grpc_max_connection_age_duration,
            random: rand::random::<f64>,
        },
        StreamMetrics::new(&registry)?,
        tasks.stop(),
    )
    .reporting_to(reports);
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
    tasks.spawn("certificates", tls.follow(tasks.stop()));
    tasks.spawn("accept", acceptor.run(tasks.stop()));
    tasks.spawn("grpc", async move {
        let server = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(service))
            .add_optional_service(legacy)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        drain::until_drained(server, stop).await;
    });
    let stop = tasks.stop();
    tasks.spawn("health", health::report(reporter, cluster, synced, stop));

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
        tasks.spawn("admin", admin.run(pages, tasks.stop()));
    }
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
                "--node-authorization=none: any agent whose certificate comes from --ca can ask \
                 for the credentials of every node's pods"
            );
            NodeProof::None
        }
    })
}
