//! Metrics of the service. Those of kiam keep their names.

use kiam_common::metrics::Registry;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    exponential_buckets,
};

/// Part of the service, for the label `handler`, with the values of kiam where it had them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handler {
    RoleName,
    Credentials,
    Extended,
    Info,
    Container,
    Token,
    /// Paths of the node's metadata service, whether passed on or not.
    Proxy,
    Health,
}

impl Handler {
    const ALL: [Self; 8] = [
        Self::RoleName,
        Self::Credentials,
        Self::Extended,
        Self::Info,
        Self::Container,
        Self::Token,
        Self::Proxy,
        Self::Health,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::RoleName => "roleName",
            Self::Credentials => "credentials",
            Self::Extended => "credentialsExtended",
            Self::Info => "info",
            Self::Container => "container",
            Self::Token => "token",
            Self::Proxy => "proxy",
            Self::Health => "health",
        }
    }
}

/// Counters that every request uses, resolved once.
#[derive(Debug, Clone)]
struct Hot {
    latency: Histogram,
    success: IntCounter,
    ok: IntCounter,
}

/// Metrics of the metadata service.
#[derive(Debug, Clone)]
pub struct MetadataMetrics {
    hot: [Hot; Handler::ALL.len()],
    responses: IntCounterVec,
    find_role_errors: IntCounterVec,
    empty_role: IntCounterVec,
    fetch_errors: IntCounterVec,
    blocked: IntCounter,
    upstream_errors: IntCounter,
    refusals: IntCounterVec,
    pub(super) with_token: IntCounter,
    pub(super) without_token: IntCounter,
    pub(super) waits: Histogram,
    pub(super) waits_over: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) connections_queued: IntCounter,
    pub(super) connections_refused: IntCounterVec,
}

impl MetadataMetrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let buckets = exponential_buckets(0.001, 2.0, 13)?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "kiam_metadata_handler_latency_seconds",
                "Time from the end of a request's head to its response.",
            )
            .buckets(buckets.clone()),
            &["handler"],
        )?;
        registry.register(Box::new(latency.clone()))?;
        let waits = Histogram::with_opts(
            HistogramOpts::new(
                "kiam_metadata_wait_seconds",
                "Time that requests were held for a pod or credentials that had not arrived yet.",
            )
            .buckets(buckets),
        )?;
        registry.register(Box::new(waits.clone()))?;
        let connections = IntGauge::new("kiam_metadata_connections", "Open connections of pods.")?;
        registry.register(Box::new(connections.clone()))?;
        let success = counters(
            "kiam_metadata_success_total",
            "Requests answered with what they asked for.",
            &["handler"],
        )?;
        let responses = counters(
            "kiam_metadata_responses_total",
            "Responses, by HTTP status.",
            &["handler", "code"],
        )?;
        let hot = Handler::ALL.map(|handler| {
            let handler = handler.label();
            Hot {
                latency: latency.with_label_values(&[handler]),
                success: success.with_label_values(&[handler]),
                ok: responses.with_label_values(&[handler, "200"]),
            }
        });
        let versions = counters(
            "kiam_metadata_imds_requests_total",
            "Requests for metadata, by version of IMDS: v2 with a session token, v1 without.",
            &["version"],
        )?;
        Ok(Self {
            hot,
            with_token: versions.with_label_values(&["v2"]),
            without_token: versions.with_label_values(&["v1"]),
            responses,
            find_role_errors: counters(
                "kiam_metadata_find_role_errors_total",
                "Requests for the name of the role that were denied.",
                &["handler"],
            )?,
            empty_role: counters(
                "kiam_metadata_empty_role_total",
                "Requests of pods without a role.",
                &["handler"],
            )?,
            fetch_errors: counters(
                "kiam_metadata_credential_fetch_errors_total",
                "Requests for credentials that were denied.",
                &["handler"],
            )?,
            blocked: counter(
                "kiam_metadata_proxy_requests_blocked_total",
                "Requests for other paths of the metadata service that pods may not read.",
            )?,
            upstream_errors: counter(
                "kiam_metadata_upstream_errors_total",
                "Requests that were passed on and that the node's metadata service did not answer.",
            )?,
            refusals: counters(
                "kiam_metadata_refusals_total",
                "Denied requests, by reason.",
                &["reason"],
            )?,
            waits,
            waits_over: counter(
                "kiam_metadata_waits_over_total",
                "Requests that were held for the whole of --pod-wait without success.",
            )?,
            connections,
            connections_queued: counter(
                "kiam_metadata_connections_queued_total",
                "Connections that waited for other requests of their pod.",
            )?,
            connections_refused: counters(
                "kiam_metadata_connections_refused_total",
                "Connections closed without a response, by limit.",
                &["limit"],
            )?,
        })
    }

    /// Counts a response.
    pub(super) fn answered(&self, handler: Handler, status: http::StatusCode, seconds: f64) {
        let Some(hot) = self.hot.get(handler as usize) else {
            return;
        };
        hot.latency.observe(seconds);
        if status == http::StatusCode::OK {
            hot.success.inc();
            hot.ok.inc();
        } else {
            let labels = [handler.label(), status.as_str()];
            self.responses.with_label_values(&labels).inc();
        }
    }

    /// Counts a denied request.
    pub(super) fn denied(&self, handler: Handler, reason: &str) {
        let label = [handler.label()];
        self.refusals.with_label_values(&[reason]).inc();
        match (handler, reason) {
            (Handler::Proxy, "upstream") => self.upstream_errors.inc(),
            (Handler::Proxy, _) => self.blocked.inc(),
            (_, "no_role") => self.empty_role.with_label_values(&label).inc(),
            (Handler::RoleName, _) => self.find_role_errors.with_label_values(&label).inc(),
            (Handler::Credentials | Handler::Extended | Handler::Container | Handler::Info, _) => {
                self.fetch_errors.with_label_values(&label).inc();
            }
            (Handler::Token | Handler::Health, _) => {}
        }
    }
}
