//! TLS configurations that are reloaded when their files change.
//!
//! The folders of the files are watched, because the kubelet updates a mounted secret by replacing
//! a symbolic link beside the files. A configuration is replaced only by a valid one: after a torn
//! write, with a missing file or with a key of another certificate, the old one stays in use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::metrics::Registry;
use arc_swap::ArcSwap;
use prometheus::{Gauge, IntGauge, Opts};
use rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::material::{Material, TlsError};
use crate::flags::TlsFlags;
use crate::watch;

/// The wait after a change, so that a writer can replace all three files.
const SETTLE: Duration = Duration::from_millis(200);
/// The interval of unconditional reloads: files behind symbolic links that leave the watched
/// folders change without an event.
const REREAD: Duration = Duration::from_secs(300);

/// The configuration of a server.
pub type ServerTls = Reloading<ServerConfig>;
/// The configuration of a client.
pub type ClientTls = Reloading<ClientConfig>;

/// A side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsSide {
    /// The side of the agent.
    Client,
    /// The side of the server.
    Server,
}

/// The metrics `grpc_{client,server}_tls_certificate_*`, named as in kiam.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    pub(super) update_error: IntGauge,
    expiry: Gauge,
}

impl TlsMetrics {
    /// Registers the metrics of one side.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(side: TlsSide, registry: &Registry) -> prometheus::Result<Self> {
        let side = match side {
            TlsSide::Client => "client",
            TlsSide::Server => "server",
        };
        let update_error = IntGauge::with_opts(Opts::new(
            format!("grpc_{side}_tls_certificate_update_error"),
            "1 while the TLS files cannot be used and the previous ones stay in use, otherwise 0.",
        ))?;
        let expiry = Gauge::with_opts(Opts::new(
            format!("grpc_{side}_tls_certificate_expiry_seconds"),
            "Expiration of the certificate in use, in seconds since 1970.",
        ))?;
        registry.register(Box::new(update_error.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Self {
            update_error,
            expiry,
        })
    }
}

/// A TLS configuration that is reloaded when its files change.
pub struct Reloading<T> {
    files: TlsFlags,
    make: fn(&Material) -> Result<T, TlsError>,
    material: ArcSwap<Material>,
    current: ArcSwap<T>,
    metrics: TlsMetrics,
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files of a server.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn server(files: TlsFlags, metrics: TlsMetrics) -> Result<Arc<Self>, TlsError> {
        Self::read(files, Material::server_config, metrics)
    }
}

impl ClientTls {
    /// Reads the files of a client.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn client(files: TlsFlags, metrics: TlsMetrics) -> Result<Arc<Self>, TlsError> {
        Self::read(files, Material::client_config, metrics)
    }
}

impl<T> Reloading<T> {
    fn read(
        files: TlsFlags,
        make: fn(&Material) -> Result<T, TlsError>,
        metrics: TlsMetrics,
    ) -> Result<Arc<Self>, TlsError> {
        let material = Material::read(&files)?;
        let current = ArcSwap::from_pointee(make(&material)?);
        metrics.publish(&material, &files);
        let material = ArcSwap::from_pointee(material);
        Ok(Arc::new(Self {
            files,
            make,
            material,
            current,
            metrics,
        }))
    }

    /// Returns the configuration for a new connection.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Reloads the files when they change, until `stop` is cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = watch::folders(&self.folders()).inspect_err(|error| {
            let every = REREAD.as_secs();
            tracing::warn!(%error, "cannot watch the TLS files; reloading them every {every} s instead");
        });
        loop {
            let changed = async {
                match &mut changes {
                    Ok(changes) => changes.next().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(REREAD) => {}
            }
            if let Ok(changes) = &mut changes {
                changes.forget();
            }
            self.reload();
        }
    }

    /// Reads the files, and uses them if they are new and valid.
    fn reload(&self) {
        let loaded = Material::read(&self.files).and_then(|material| {
            let unchanged = material.same_as(&self.material.load());
            let made = if unchanged {
                None
            } else {
                Some((self.make)(&material)?)
            };
            Ok((material, made))
        });
        match loaded {
            Ok((_, None)) => self.metrics.update_error.set(0),
            Ok((material, Some(config))) => {
                self.metrics.publish(&material, &self.files);
                self.material.store(Arc::new(material));
                self.current.store(Arc::new(config));
                tracing::info!(cert = %self.files.cert.display(), "reloaded the TLS files");
            }
            Err(error) => {
                self.metrics.update_error.set(1);
                tracing::error!(%error, "cannot use the new TLS files; the previous ones stay in use");
            }
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        let TlsFlags { cert, key, ca } = &self.files;
        let mut folders: Vec<_> = [cert, key, ca]
            .into_iter()
            .map(|file| match file.parent() {
                Some(folder) if folder != Path::new("") => folder.to_owned(),
                _ => PathBuf::from("."),
            })
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

impl TlsMetrics {
    fn publish(&self, material: &Material, files: &TlsFlags) {
        let expires = material.expires();
        let seconds = expires
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.expiry.set(seconds.as_secs_f64());
        self.update_error.set(0);
        if expires <= SystemTime::now() {
            tracing::error!(
                cert = %files.cert.display(),
                "the certificate has expired; connections fail until it is replaced"
            );
        }
    }
}
