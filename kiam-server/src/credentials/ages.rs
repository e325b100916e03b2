//! How old the credentials are, and how long they last: read when the metrics are.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Registry};

use super::Store;
use crate::clock::Clock;

/// The oldest credentials, those that expire first, and how many identities fail.
#[derive(Debug)]
pub struct CredentialAges {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    age: Gauge,
    left: Gauge,
    failing: Gauge,
}

impl CredentialAges {
    /// Registers them. Without any credentials there is no age and no time left to tell.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(
        registry: &Registry,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
    ) -> prometheus::Result<()> {
        registry.register(Box::new(Self {
            store,
            clock,
            age: Gauge::new(
                "kiam_sts_credentials_oldest_age_seconds",
                "How long ago the oldest credentials that are held were issued.",
            )?,
            left: Gauge::new(
                "kiam_sts_credentials_least_remaining_seconds",
                "How long the credentials that expire first still last; negative once they have.",
            )?,
            failing: Gauge::new(
                "kiam_sts_identities_failing",
                "Identities whose last call for credentials failed.",
            )?,
        }))
    }
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

/// From one time to the other; negative if it is the earlier one.
fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or_else(
        |earlier| -earlier.duration().as_secs_f64(),
        |later| later.as_secs_f64(),
    )
}
