//! What the metadata service counts, by kiam's names where kiam had them.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    exponential_buckets,
};

/// Which part of the service answered; the label `handler`, by kiam's words for those it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handler {
    RoleName,
    Credentials,
    Extended,
    Info,
    Container,
    Token,
    /// What is passed on to the real service, or would have been by kiam.
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

/// The counters that every request touches, resolved once.
#[derive(Debug, Clone)]
struct Hot {
    latency: Histogram,
    success: IntCounter,
    ok: IntCounter,
}

/// The metrics of the metadata service.
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
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
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
                "From a request's head being read to its answer being made.",
            )
            .buckets(buckets.clone()),
            &["handler"],
        )?;
        registry.register(Box::new(latency.clone()))?;
        let waits = Histogram::with_opts(
            HistogramOpts::new(
                "kiam_metadata_wait_seconds",
                "How long requests were held for a pod or credentials still on their way.",
            )
            .buckets(buckets),
        )?;
        registry.register(Box::new(waits.clone()))?;
        let connections = IntGauge::new(
            "kiam_metadata_connections",
            "Connections of pods that are open now.",
        )?;
        registry.register(Box::new(connections.clone()))?;
        let success = counters(
            "kiam_metadata_success_total",
            "Requests that were answered with what they asked for.",
            &["handler"],
        )?;
        let responses = counters(
            "kiam_metadata_responses_total",
            "Answers, by HTTP status.",
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
            "Requests for metadata, by whether they carried a token of IMDSv2.",
            &["version"],
        )?;
        Ok(Self {
            hot,
            with_token: versions.with_label_values(&["v2"]),
            without_token: versions.with_label_values(&["v1"]),
            responses,
            find_role_errors: counters(
                "kiam_metadata_find_role_errors_total",
                "Requests for the role's name that could not be answered.",
                &["handler"],
            )?,
            empty_role: counters(
                "kiam_metadata_empty_role_total",
                "Requests of pods that have no role.",
                &["handler"],
            )?,
            fetch_errors: counters(
                "kiam_metadata_credential_fetch_errors_total",
                "Requests for credentials that could not be answered.",
                &["handler"],
            )?,
            blocked: counter(
                "kiam_metadata_proxy_requests_blocked_total",
                "Requests for paths of the real metadata service that are not let through.",
            )?,
            upstream_errors: counter(
                "kiam_metadata_upstream_errors_total",
                "Requests that were let through and that the node's own metadata service did not answer.",
            )?,
            refusals: counters(
                "kiam_metadata_refusals_total",
                "Requests that were not answered with what they asked for, by reason.",
                &["reason"],
            )?,
            waits,
            waits_over: counter(
                "kiam_metadata_waits_over_total",
                "Requests that were held as long as --pod-wait allows, in vain.",
            )?,
            connections,
            connections_queued: counter(
                "kiam_metadata_connections_queued_total",
                "Connections that waited for others of their pod to be answered.",
            )?,
            connections_refused: counters(
                "kiam_metadata_connections_refused_total",
                "Connections that were closed without an answer, by the limit that they met.",
                &["limit"],
            )?,
        })
    }

    /// Counts one answer.
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

    /// Counts one refusal.
    pub(super) fn refused(&self, handler: Handler, reason: &str) {
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
