//! Descriptions of all metrics that an agent can have, whatever its flags are.

use kiam_common::metrics::{Description, Registry};
use kiam_common::tls::{TlsMetrics, TlsSide};

use crate::bypass_counter::BypassMetric;
use crate::iptables::FirewallMetrics;
use crate::kernel::KernelMetrics;
use crate::metadata::{MetadataMetrics, V1Users};
use crate::route_guard::RouteGuardMetrics;
use crate::stream::StreamMetrics;

/// Describes the metrics, by name.
///
/// # Errors
/// When two have the same name.
pub fn descriptions() -> prometheus::Result<Vec<Description>> {
    let registry = Registry::describing();
    TlsMetrics::new(TlsSide::Client, &registry)?;
    StreamMetrics::new(&registry)?;
    MetadataMetrics::new(&registry)?;
    V1Users::describe(&registry)?;
    KernelMetrics::describe(&registry)?;
    BypassMetric::describe(&registry)?;
    registry.register(Box::new(FirewallMetrics::new()?.collector()))?;
    registry.register(Box::new(RouteGuardMetrics::new()?.collector()))?;
    Ok(registry.descriptions())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_type_and_a_help_text() {
        let mut described = descriptions().unwrap().into_iter();
        assert!(described.all(|it| it.kind != "untyped" && it.help.ends_with('.')));
    }
}
