//! Flags of the server of kiam v3 and v4 that have no effect. They are accepted, with a warning, so
//! that the manifests of kiam work unchanged.

/// Flags of kiam v3 and v4 that have no effect.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CompatFlags {
    #[arg(long, hide = true)]
    sync: Option<String>,
    #[arg(long, hide = true)]
    fetchers: Option<String>,
    #[arg(long, hide = true)]
    prefetch_buffer_size: Option<String>,
    #[arg(long, hide = true)]
    prometheus_sync_interval: Option<String>,
    #[arg(long, hide = true)]
    pprof_listen_addr: Option<String>,
    #[arg(long, hide = true, alias = "grpc-keepalive-time-ms")]
    grpc_keepalive_time_duration: Option<String>,
    #[arg(long, hide = true, alias = "grpc-keepalive-timeout-ms")]
    grpc_keepalive_timeout_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_max_connection_idle_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_max_connection_age_grace_duration: Option<String>,
    #[arg(long, hide = true)]
    statsd: Option<String>,
    #[arg(long, hide = true)]
    statsd_prefix: Option<String>,
    #[arg(long, hide = true)]
    statsd_interval: Option<String>,
}

const WATCHES: &str = "watches deliver every change, and there is no queue to size";
const KEEPALIVE: &str = "both sides detect a dead connection within 20 s";
const METRICS: &str = "metrics are served at --prometheus-listen-addr, up to date at each scrape";

impl CompatFlags {
    /// Returns each flag that is set, and why it has no effect.
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        let Self {
            sync,
            fetchers,
            prefetch_buffer_size,
            prometheus_sync_interval,
            pprof_listen_addr,
            grpc_keepalive_time_duration,
            grpc_keepalive_timeout_duration,
            grpc_max_connection_idle_duration,
            grpc_max_connection_age_grace_duration,
            statsd,
            statsd_prefix,
            statsd_interval,
        } = self;
        let profiles = "profile the process with perf";
        let streams = "node streams are never idle, and close between two messages";
        let flags = [
            ("--sync", sync, WATCHES),
            ("--fetchers", fetchers, WATCHES),
            ("--prefetch-buffer-size", prefetch_buffer_size, WATCHES),
            (
                "--prometheus-sync-interval",
                prometheus_sync_interval,
                METRICS,
            ),
            ("--pprof-listen-addr", pprof_listen_addr, profiles),
            (
                "--grpc-keepalive-time-duration",
                grpc_keepalive_time_duration,
                KEEPALIVE,
            ),
            (
                "--grpc-keepalive-timeout-duration",
                grpc_keepalive_timeout_duration,
                KEEPALIVE,
            ),
            (
                "--grpc-max-connection-idle-duration",
                grpc_max_connection_idle_duration,
                streams,
            ),
            (
                "--grpc-max-connection-age-grace-duration",
                grpc_max_connection_age_grace_duration,
                streams,
            ),
            ("--statsd", statsd, METRICS),
            ("--statsd-prefix", statsd_prefix, METRICS),
            ("--statsd-interval", statsd_interval, METRICS),
        ];
        let given = flags.into_iter().filter(|(_, value, _)| value.is_some());
        given.map(|(flag, _, why)| (flag, why)).collect()
    }
}
