//! Puts the agent together, in the order in which it starts.

mod redirect;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use futures::future::BoxFuture;
use kiam_common::admin::Admin;
use kiam_common::readiness::{Awaited, Readiness};
use kiam_common::tasks::{TaskError, Tasks};
use kiam_common::tls::{ClientTls, TlsError, TlsMetrics, TlsSide};
use prometheus::core::Collector;
use tokio_util::sync::CancellationToken;

pub use redirect::RedirectError;
pub(crate) use redirect::{Alone, alone};

use crate::args::{Args, Redirect};
use crate::caller::Identify;
use crate::metadata::{self, Listening, MetadataMetrics, Sources, V1Users};
use crate::self_check::SelfCheck;
use crate::status::{Setting, Status};
use crate::stream::{self, Client, Pace, StreamMetrics, TlsDial};
use crate::token_key::TokenKey;
use crate::view::{Projection, View};

/// What is awaited last.
const SELF_CHECK: &str = "the agent's own connection to the metadata service";

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port for pods cannot be had.
    #[error(
        "cannot listen for pods on {address}: {source}; --host must be an address of this node, and --port free"
    )]
    Listen {
        /// `--host` and `--port`.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The operator's port cannot be had.
    #[error("cannot listen on {address} (--prometheus-listen-addr): {source}")]
    Admin {
        /// `--prometheus-listen-addr`.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Pods' connections cannot be brought here.
    #[error("cannot redirect the pods' connections to the metadata service: {0}")]
    Redirect(#[from] RedirectError),
    /// A metric was registered twice.
    #[error("cannot register the agent's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    /// Whether other flags or files would help.
    #[must_use]
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

/// How pods' connections come here, once that is arranged.
pub struct Redirected {
    /// Tells which pod is calling.
    pub identify: Arc<dyn Identify>,
    /// What is to be checked before the agent is ready.
    pub check: Option<SelfCheck>,
    /// What tokens are made with, by this agent and the next.
    pub token_key: TokenKey,
    /// Whether pods can no longer reach the real metadata service.
    pub guarded: bool,
    /// What is to be done for that while the agent runs, until it is told to stop.
    pub upkeep: Upkeep,
    /// What that counts.
    pub metrics: Vec<Box<dyn Collector>>,
    /// What must live as long as the agent does.
    pub keep: Box<dyn Any + Send>,
}

/// Work that goes on until the token is cancelled.
pub type Upkeep = Box<dyn FnOnce(View, CancellationToken) -> BoxFuture<'static, ()> + Send>;

impl fmt::Debug for Redirected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirected")
            .field("guarded", &self.guarded)
            .finish_non_exhaustive()
    }
}

/// An agent that runs, and where.
pub struct Bound {
    /// Where pods' connections are brought.
    pub metadata: SocketAddr,
    /// The operator's port, if there is one.
    pub admin: Option<SocketAddr>,
    tasks: Tasks,
    grace: Duration,
    keep: Box<dyn Any + Send>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("metadata", &self.metadata)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Starts the agent that the flags describe.
///
/// # Errors
/// When something that it cannot be without is not there. A server that cannot be reached is not
/// among these.
pub async fn build(args: &Args) -> Result<Bound, StartError> {
    build_with(args, async |address| {
        redirect::fits(args)?;
        let redirected = match args.redirect {
            Redirect::Ebpf => redirect::ebpf(args, address)?,
            Redirect::Iptables => redirect::iptables(args, address).await?,
        };
        let redirected = redirect::with_route_guard(args, redirected)?;
        Ok(redirect::with_bypass_counter(args, redirected)?)
    })
    .await
}

/// Starts the agent with another way of bringing connections here, which is arranged once there
/// is a port to bring them to.
///
/// # Errors
/// As [`build`].
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

    // Pods that are redirected find somebody listening.
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
        upkeep,
        metrics,
        keep,
    } = redirect(address).await?;
    for metrics in metrics {
        registry.register(metrics)?;
    }
    let (projection, view) = Projection::new();
    tasks.spawn("redirection", upkeep(view.clone(), stop.clone()));
    let snapshot = readiness.awaits("the first word of a server on the node's pods");
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
            pace: Pace::default(),
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
        standing: client.standing(),
        v1_users: v1_users.clone(),
        remote: args.remote_status,
    };
    let admin = admin.map(|(address, admin)| {
        let pages = vec![status.page()];
        tasks.spawn("operator's port", admin.run(pages, stop.clone()));
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
        standing: client.standing(),
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

    tasks.spawn("certificates", tls.follow(stop.clone()));
    tasks.spawn("node stream", client.run(stop));

    tracing::info!(
        node = args.node_name,
        metadata = %address,
        operator = admin.map(|address| address.to_string()),
        server = %args.server.server_address,
        "kiam-agent {} serves this node's pods",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(Bound {
        metadata: address,
        admin,
        tasks,
        grace,
        keep,
    })
}

/// Makes the check once all else is ready: only then do connections come here, and not to an earlier
/// agent. What it finds wrong ends the agent, and an earlier one goes on.
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
            tracing::info!("a connection of the agent's own came here, as its pod's");
            checked.done();
            stop.cancelled().await;
        }
        Err(error) => {
            tracing::error!("pods would not be served: {error}");
            checked.never();
        }
    }
}

/// What does not change, as the flags have it.
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
    /// Runs until `stop`, then answers what is in flight and ends.
    ///
    /// # Errors
    /// When a part of the agent ended before its time, or not in time.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let failed = tokio::select! {
            () = stop => None,
            error = self.tasks.failed() => Some(error),
        };
        match &failed {
            None => tracing::info!("stopping: answering what is in flight"),
            Some(error) => tracing::error!("stopping: {error}"),
        }
        let stopped = self.tasks.shut_down(self.grace).await;
        drop(self.keep);
        failed.map_or(stopped, Err)
    }
}
