//! Assembly of the agent, in the order in which its parts start.

mod descriptions;
mod redirect;
mod task;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use kiam_common::admin::Admin;
use kiam_common::readiness::{Awaited, Readiness};
use kiam_common::tasks::{TaskError, Tasks};
use kiam_common::tls::{ClientTls, TlsError, TlsMetrics, TlsSide};
use prometheus::core::Collector;
use tokio_util::sync::CancellationToken;

pub use descriptions::descriptions;
pub(crate) use redirect::RedirectError;
pub(crate) use redirect::{PreAttached, pre_attach};
pub use task::BackgroundTask;

use crate::args::{Args, Redirect};
use crate::caller::Identify;
use crate::kernel::Programs;
use crate::metadata::{self, Listening, MetadataMetrics, Sources, V1Users};
use crate::self_check::SelfCheck;
use crate::status::{Setting, Status};
use crate::stream::{self, Client, StreamMetrics, Timeouts, TlsDial};
use crate::token_key::TokenKey;
use crate::view::Projection;

/// The last condition of readiness.
const SELF_CHECK: &str = "the agent's own connection to the metadata service";

/// Reason why the agent did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port for pods cannot be bound.
    #[error(
        "cannot listen for pods on {address}: {source}; set --host to an address of this node, and --port to a free port"
    )]
    Listen {
        /// `--host` and `--port`.
        address: SocketAddr,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The admin port cannot be bound.
    #[error("cannot listen on {address}: {source}; check --prometheus-listen-addr")]
    Admin {
        /// `--prometheus-listen-addr`.
        address: SocketAddr,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Pods' connections cannot be redirected.
    #[error("cannot redirect pods' connections to the metadata service: {0}")]
    Redirect(#[from] RedirectError),
    /// A metric was registered twice.
    #[error("cannot register the agent's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    /// Returns whether other flags or files would avoid the error.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Listen { source, .. } | Self::Admin { source, .. } => {
                source.kind() == io::ErrorKind::AddrNotAvailable
            }
            Self::Redirect(error) => error.is_usage(),
            Self::Metrics(_) => false,
        }
    }
}

/// The redirection of pods' connections, in effect.
pub struct Redirected {
    /// Identification of the calling pods.
    pub identify: Arc<dyn Identify>,
    /// The check to pass before the agent is ready.
    pub check: Option<SelfCheck>,
    /// The key of tokens, shared with the next agent.
    pub token_key: TokenKey,
    /// True if pods can no longer reach the real metadata service.
    pub guarded: bool,
    /// The tasks that keep it in effect.
    pub tasks: Vec<BackgroundTask>,
    /// The metrics of these.
    pub metrics: Vec<Box<dyn Collector>>,
    /// The kernel programs, which are open as long as the agent runs.
    pub programs: Option<Arc<Programs>>,
}

impl fmt::Debug for Redirected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirected")
            .field("guarded", &self.guarded)
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

/// A running agent with its ports bound.
pub struct Bound {
    /// Address that pods' connections are redirected to.
    pub metadata: SocketAddr,
    /// The admin port, if there is one.
    pub admin: Option<SocketAddr>,
    tasks: Tasks,
    grace: Duration,
    programs: Option<Arc<Programs>>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("metadata", &self.metadata)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Starts the agent. A server that cannot be reached does not prevent this.
pub async fn build(args: &Args) -> Result<Bound, StartError> {
    build_with(args, async |address| {
        redirect::check_guard(args)?;
        let redirected = match args.redirect {
            Redirect::Ebpf => redirect::ebpf(args, address)?,
            Redirect::Iptables => redirect::iptables(args, address).await?,
        };
        let redirected = redirect::with_route_guard(args, redirected)?;
        Ok(redirect::with_bypass_counter(args, redirected)?)
    })
    .await
}

/// Starts the agent with another redirection, which is set up once the port for pods is bound.
pub async fn build_with(
    args: &Args,
    redirect: impl AsyncFnOnce(SocketAddr) -> Result<Redirected, StartError>,
) -> Result<Bound, StartError> {
    let registry = kiam_common::telemetry::registry()?;
    let readiness = Readiness::new();
    let mut tasks = Tasks::new();
    let stop = tasks.stop();

    let tls = ClientTls::client(
        args.tls.clone(),
        TlsMetrics::new(TlsSide::Client, &registry)?,
    )?;

    // Before the redirection, so that redirected pods find a listener.
    let address = args.listen();
    let failed = |source| StartError::Listen { address, source };
    let listening = Listening::bind(address).map_err(failed)?;
    let address = listening.address().map_err(failed)?;
    let admin = match args.telemetry.prometheus_listen_addr {
        Some(address) => {
            let failed = |source| StartError::Admin { address, source };
            let admin =
                Admin::bind(address, registry.clone(), readiness.clone()).map_err(failed)?;
            Some((admin.address().map_err(failed)?, admin))
        }
        None => None,
    };

    let Redirected {
        identify,
        token_key,
        check,
        guarded,
        tasks: redirect_tasks,
        metrics,
        programs,
    } = redirect(address).await?;
    for metrics in metrics {
        registry.register(metrics)?;
    }
    let (projection, view) = Projection::new();
    for task in redirect_tasks {
        task.spawn(&mut tasks, view.clone());
    }
    let snapshot = readiness.awaits("the first snapshot of the node's pods from a server");
    if let Some(check) = check {
        let checked = readiness.awaits(SELF_CHECK);
        let work = self_check(check, checked, readiness.clone(), stop.clone());
        tasks.spawn("self-check", work);
    }

    let client = Client::new(
        stream::Settings {
            node: args.node_name.clone(),
            server: args.server.server_address.to_string(),
            token_file: args.server.token_file.clone(),
            guarded,
            timeouts: Timeouts::default(),
        },
        Box::new(args.server.server_address.clone()),
        Box::new(TlsDial {
            name: args.server.server_address.name(),
            tls: Arc::clone(&tls),
        }),
        projection,
        StreamMetrics::new(&registry)?,
        snapshot,
    );
    let v1_users = V1Users::new(view.clone(), &registry)?;
    let status = Status {
        setting: setting(args),
        view: view.clone(),
        connection: client.connection(),
        v1_users: v1_users.clone(),
        remote: args.remote_status,
    };
    let admin = admin.map(|(address, admin)| {
        let pages = vec![status.page()];
        tasks.spawn("admin port", admin.run(pages, stop.clone()));
        address
    });

    let settings = metadata::Settings {
        pod_wait: args.pod_wait,
        imds_v2: args.imds_v2,
        allow_routes: args.metadata.allow_route_regexp.clone(),
        legacy_redirects: args.metadata.legacy_redirects,
        container: args.metadata.container_credentials_address.is_some(),
        ..metadata::Settings::default()
    };
    let grace = settings.grace() + Duration::from_secs(1);
    let sources = Sources {
        clock: Arc::new(SystemTime::now),
        identify,
        token_key,
        connection: client.connection(),
        v1_users,
        metrics: MetadataMetrics::new(&registry)?,
        view,
    };
    let service = listening.service(settings, sources);
    let ready = readiness.clone();
    tasks.spawn(
        "metadata service",
        service.run(async move { ready.all_but(SELF_CHECK).await }, stop.clone()),
    );

    tasks.spawn("certificates", tls.run(stop.clone()));
    tasks.spawn("node stream", client.run(stop));

    tracing::info!(
        node = args.node_name,
        metadata = %address,
        operator = admin.map(|address| address.to_string()),
        server = %args.server.server_address,
        "kiam-agent {} serves the pods of this node",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(Bound {
        metadata: address,
        admin,
        tasks,
        grace,
        programs,
    })
}

/// Runs the self-check once all other conditions of readiness hold: only then do connections reach
/// this agent, and not an earlier one. A failure ends the agent, and an earlier agent continues.
async fn self_check(
    check: SelfCheck,
    checked: Awaited,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let made = async {
        readiness.all_but(SELF_CHECK).await;
        check.run().await
    };
    let made = tokio::select! {
        () = stop.cancelled() => return checked.never(),
        made = made => made,
    };
    match made {
        Ok(()) => {
            tracing::info!("self-check: the agent's own connection reached the agent");
            checked.done();
            stop.cancelled().await;
        }
        Err(error) => {
            tracing::error!("self-check: pods would not be served: {error}");
            checked.never();
        }
    }
}

/// Returns the settings to show in the status.
fn setting(args: &Args) -> Setting {
    fn name(value: &impl ValueEnum) -> String {
        let value = value.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
    let host_network_pods = match args.redirect {
        Redirect::Ebpf => name(&args.host_network.host_network_pods),
        Redirect::Iptables => "not redirected".to_owned(),
    };
    Setting {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: args.node_name.clone(),
        redirect: name(&args.redirect),
        guard: args.guard().to_string(),
        host_network_pods,
        imds_v2: name(&args.imds_v2),
    }
}

impl Bound {
    /// Runs until `stop`, then finishes the requests in progress. Fails if a task ends before, or
    /// does not stop in time.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let failed = tokio::select! {
            () = stop => None,
            error = self.tasks.failed() => Some(error),
        };
        match &failed {
            None => tracing::info!("stopping: finishing the requests in progress"),
            Some(error) => tracing::error!("stopping: {error}"),
        }
        let stopped = self.tasks.shut_down(self.grace).await;
        drop(self.programs);
        failed.map_or(stopped, Err)
    }
}
