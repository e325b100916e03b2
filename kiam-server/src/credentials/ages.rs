//! Gauges of the age and remaining lifetime of credentials, computed at each scrape.

use std::sync::Arc;
use std::time::SystemTime;

use kiam_common::metrics::Registry;
use prometheus::Gauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::Store;
use crate::clock::Clock;

/// Gauges of the oldest credentials, the first to expire, and the failing identities.
#[derive(Debug)]
pub struct CredentialAges {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    age: Gauge,
    left: Gauge,
    failing: Gauge,
}

impl CredentialAges {
    /// Registers the gauges. Those of age and lifetime are absent while there are no credentials.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(
        registry: &Registry,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
    ) -> prometheus::Result<()> {
        let [age, left, failing] = gauges()?;
        registry.register(Box::new(Self {
            store,
            clock,
            age,
            left,
            failing,
        }))
    }

    /// Registers what describes the gauges.
    pub(crate) fn describe(registry: &Registry) -> prometheus::Result<()> {
        let mut gauges = gauges()?.into_iter();
        gauges.try_for_each(|gauge| registry.register(Box::new(gauge)))
    }
}

/// The gauges of age, of lifetime and of failing identities.
fn gauges() -> prometheus::Result<[Gauge; 3]> {
    Ok([
        Gauge::new(
            "kiam_sts_credentials_oldest_age_seconds",
            "Age of the oldest credentials that are held.",
        )?,
        Gauge::new(
            "kiam_sts_credentials_least_remaining_seconds",
            "Remaining lifetime of the credentials that expire first; negative after that.",
        )?,
        Gauge::new(
            "kiam_sts_identities_failing",
            "Identities whose last call to STS failed.",
        )?,
    ])
}

impl Collector for CredentialAges {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.age, &self.left, &self.failing];
        gauges.into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshots = self.store.snapshots();
        let failing = snapshots.iter().filter(|(_, held)| held.failure.is_some());
        let failing = u32::try_from(failing.count()).unwrap_or(u32::MAX);
        self.failing.set(failing.into());
        let mut families = self.failing.collect();
        let held = || {
            snapshots
                .iter()
                .filter_map(|(_, of)| of.credentials.as_ref())
        };
        let now = self.clock.now();
        let issued = held().map(|credentials| credentials.issued).min();
        let expires = held().map(|credentials| credentials.expiration).min();
        if let (Some(issued), Some(expires)) = (issued, expires) {
            self.age.set(seconds(issued, now));
            self.left.set(seconds(now, expires));
            families.extend(self.age.collect());
            families.extend(self.left.collect());
        }
        families
    }
}

/// Returns the seconds from one time to the other, negative if `to` is earlier.
fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or_else(
        |earlier| -earlier.duration().as_secs_f64(),
        |later| later.as_secs_f64(),
    )
}
