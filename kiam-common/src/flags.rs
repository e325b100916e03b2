//! Flags that the agent and the server share. Their names are those of kiam.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Flags for logs and metrics.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logs and metrics")]
pub struct TelemetryFlags {
    /// Log JSON instead of text
    #[arg(long)]
    pub json_log: bool,

    /// Log level: debug, info, warn or error, or levels per module such as
    /// info,kiam_server::node=debug
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub level: String,

    /// Serve /metrics, /healthz and /readyz on this address. Without it they are not served
    #[arg(long, value_name = "ADDR:PORT")]
    pub prometheus_listen_addr: Option<SocketAddr>,
}

/// Flags for mutual TLS. The files are reloaded when they change.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsFlags {
    /// Certificate chain of this program, in PEM format
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,

    /// Private key of the certificate, in PEM format
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    /// Certificate authorities that must have issued the peer's certificate, in PEM format
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
}
