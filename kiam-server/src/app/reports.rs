//! Assembly of the audit log, and of Kubernetes Events if there is an API.

use std::sync::Arc;

use kiam_common::metrics::Registry;
use kiam_common::tasks::Tasks;

use super::StartError;
use crate::clock::{Clock, SystemClock};
use crate::cluster::Cluster;
use crate::report::audit::Writer;
use crate::report::events::Events;
use crate::report::{AuditLog, ReportMetrics, Reports, publish};

/// Starts the tasks of the configured reports.
pub(super) fn start(
    audit_log: &AuditLog,
    client: Option<kube::Client>,
    cluster: &Arc<Cluster>,
    registry: &Registry,
    tasks: &mut Tasks,
) -> Result<Reports, StartError> {
    let metrics = ReportMetrics::new(registry)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut reports = Reports::off();
    if let Some(client) = client {
        let (enabled, notices) = reports.with_events(Arc::clone(&clock), &metrics);
        let (cluster, events) = (Arc::clone(cluster), Events::new(client));
        let work = publish(notices, events, cluster, metrics.clone(), tasks.stop());
        tasks.spawn("Kubernetes Events", work);
        reports = enabled;
    }
    if let Some(writer) = Writer::open(audit_log, metrics.clone())? {
        let (enabled, records) = reports.with_audit(Arc::clone(cluster), clock, &metrics);
        tasks.spawn("audit log", writer.run(records, tasks.stop()));
        tasks.spawn("grant ledger", enabled.clone().run_ledger(tasks.stop()));
        reports = enabled;
    }
    Ok(reports)
}
