//! The audit log, and Events where there is an API to post them to.

use std::sync::Arc;

use kiam_common::tasks::Tasks;
use prometheus::Registry;

use super::StartError;
use crate::clock::{Clock, SystemClock};
use crate::cluster::Cluster;
use crate::report::audit::Writer;
use crate::report::events::Events;
use crate::report::{AuditLog, ReportMetrics, Reports, publish};

/// What is asked for, and the tasks behind it.
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
        let (with, notices) = reports.with_events(Arc::clone(&clock), &metrics);
        let (cluster, events) = (Arc::clone(cluster), Events::new(client));
        let work = publish(notices, events, cluster, metrics.clone(), tasks.stop());
        tasks.spawn("events", work);
        reports = with;
    }
    if let Some(writer) = Writer::open(audit_log, metrics.clone())? {
        let (with, records) = reports.with_audit(Arc::clone(cluster), clock, &metrics);
        tasks.spawn("audit", writer.run(records, tasks.stop()));
        tasks.spawn("grants", with.clone().follow(tasks.stop()));
        reports = with;
    }
    Ok(reports)
}
