//! Flags that the agent and the server share, named as kiam named them.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How to log.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logs and metrics")]
pub struct TelemetryFlags {
    /// Log JSON instead of text
    #[arg(long)]
    pub json_log: bool,

    /// Log level: debug, info, warn or error; or per module, as in info,kiam_server::node=debug
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub level: String,

    /// Serve /metrics, /healthz and /readyz on this address; off if not given
    #[arg(long, value_name = "ADDR:PORT")]
    pub prometheus_listen_addr: Option<SocketAddr>,
}

/// The certificates of mutual TLS. The files are read again when they change.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsFlags {
    /// This program's certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    /// The certificate authorities that the other side's certificate must come from, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
}
