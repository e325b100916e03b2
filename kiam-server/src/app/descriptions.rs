//! Descriptions of all metrics that a server can have, whatever its flags are.

use std::sync::Arc;

use kiam_common::metrics::{Description, Registry};
use kiam_common::tls::{TlsMetrics, TlsSide};

use crate::clock::SystemClock;
use crate::credentials::{CredentialAges, StoreMetrics};
use crate::node::StreamMetrics;
use crate::node::proof::ReviewMetrics;
use crate::report::ReportMetrics;
use crate::source::WatchMetrics;
use crate::taint::TaintMetrics;

/// Describes the metrics, by name.
///
/// # Errors
/// When two have the same name.
pub fn descriptions() -> prometheus::Result<Vec<Description>> {
    let registry = Registry::describing();
    TlsMetrics::new(TlsSide::Server, &registry)?;
    WatchMetrics::new(&registry, Arc::new(SystemClock))?;
    StoreMetrics::new(&registry)?;
    CredentialAges::describe(&registry)?;
    StreamMetrics::new(&registry)?;
    ReviewMetrics::new(&registry)?;
    ReportMetrics::new(&registry)?;
    TaintMetrics::new(&registry)?;
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
