//! Configurations that follow their files.
//!
//! The folders of the files are watched, since the kubelet replaces a mounted secret by
//! swapping a symbolic link beside it. Whatever is read then is used only if it makes a whole
//! configuration: a torn write, a missing file, a key of another certificate keep the old one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus::{Gauge, IntGauge, Opts, Registry};
use rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::material::{Material, TlsError};
use crate::flags::TlsFlags;
use crate::watch;

/// A writer that replaces three files is given this long to finish before they are read.
const SETTLE: Duration = Duration::from_millis(200);
/// Files behind links that lead out of the watched folders change unseen: they are read again
/// this often all the same.
const REREAD: Duration = Duration::from_secs(300);

/// A server's configuration that follows its files.
pub type ServerTls = Reloading<ServerConfig>;
/// A client's configuration that follows its files.
pub type ClientTls = Reloading<ClientConfig>;

/// Which end of a connection a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsSide {
    /// The agent's end.
    Client,
    /// The server's end.
    Server,
}

/// kiam's metrics of a certificate: `grpc_{client,server}_tls_certificate_*`.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    pub(super) update_error: IntGauge,
    expiry: Gauge,
}

impl TlsMetrics {
    /// Registers the metrics of one end.
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
            "1 while the TLS files cannot be used and older ones stay in use, else 0.",
        ))?;
        let expiry = Gauge::with_opts(Opts::new(
            format!("grpc_{side}_tls_certificate_expiry_seconds"),
            "When the certificate in use expires, in seconds since 1970.",
        ))?;
        registry.register(Box::new(update_error.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Self {
            update_error,
            expiry,
        })
    }
}

/// A configuration that follows its files.
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
    /// Reads a server's files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn server(files: TlsFlags, metrics: TlsMetrics) -> Result<Arc<Self>, TlsError> {
        Self::read(files, Material::server_config, metrics)
    }
}

impl ClientTls {
    /// Reads a client's files.
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

    /// The configuration to use for a new connection.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Follows the files until told to stop.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = watch::folders(&self.folders()).inspect_err(|error| {
            let every = REREAD.as_secs();
            tracing::warn!(%error, "cannot watch the TLS files; reading them every {every} s");
        });
        loop {
            let news = async {
                match &mut changes {
                    Ok(changes) => changes.next().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = news => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(REREAD) => {}
            }
            if let Ok(changes) = &mut changes {
                changes.forget();
            }
            self.reload();
        }
    }

    /// Reads the files again, and uses them if they are new and whole.
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
                tracing::info!(cert = %self.files.cert.display(), "new TLS files are in use");
            }
            Err(error) => {
                self.metrics.update_error.set(1);
                tracing::error!(%error, "the new TLS files cannot be used; the old ones stay");
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
                "the certificate has expired: no connection will succeed until it is replaced"
            );
        }
    }
}
