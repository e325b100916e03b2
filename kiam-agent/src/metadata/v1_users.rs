//! Pods that send no tokens of IMDSv2, and their clients, so that operators know whether they can
//! require tokens.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use kiam_common::metrics::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};

use super::decide::find;
use super::sdk::Sdk;
use crate::caller::PodRef;
use crate::view::{Snapshot, View};

/// Maximum number of counted pods, more than a node runs. Beyond it, removed pods are forgotten.
const MAX_PODS: usize = 1024;

/// Counter of requests without a token, by pod and client.
#[derive(Clone)]
pub struct V1Users {
    view: View,
    /// Describes the metric; the values are the counts.
    shape: IntCounterVec,
    counts: Arc<Mutex<HashMap<PodRef, [u64; Sdk::COUNT]>>>,
}

/// Requests of one client of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct V1Use {
    /// The kind of client.
    pub(crate) sdk: Sdk,
    /// Number of requests since the agent started.
    pub(crate) requests: u64,
}

impl fmt::Debug for V1Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V1Users").finish_non_exhaustive()
    }
}

impl V1Users {
    /// Creates the counter for the pods of a view, and registers it as a metric.
    pub fn new(view: View, registry: &Registry) -> prometheus::Result<Self> {
        let users = Self {
            view,
            shape: shape()?,
            counts: Arc::default(),
        };
        registry.register(Box::new(users.clone()))?;
        Ok(users)
    }

    /// Registers what describes the metric.
    pub(crate) fn describe(registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(shape()?))
    }

    /// Counts a request.
    pub(super) fn count(&self, who: &PodRef, sdk: Sdk) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(who).and_then(|all| all.get_mut(sdk.index())) {
            *count += 1;
            return;
        }
        if counts.len() >= MAX_PODS {
            let snapshot = self.view.load();
            counts.retain(|who, _| matches!(find(&snapshot, who), Ok(Some(_))));
        }
        if counts.len() < MAX_PODS {
            let mut all = [0; Sdk::COUNT];
            if let Some(count) = all.get_mut(sdk.index()) {
                *count = 1;
            }
            counts.insert(who.clone(), all);
        }
    }

    /// Returns the clients of the pods in a snapshot, by `(namespace, name)`.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> HashMap<(Box<str>, Box<str>), Vec<V1Use>> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut users: HashMap<_, Vec<V1Use>> = HashMap::new();
        for (who, all) in counts.iter() {
            let Ok(Some(pod)) = find(snapshot, who) else {
                continue;
            };
            let uses = Sdk::all().zip(all).filter(|(_, requests)| **requests > 0);
            let uses = uses.map(|(sdk, requests)| V1Use {
                sdk,
                requests: *requests,
            });
            let key = (pod.facts.namespace.clone(), pod.facts.name.clone());
            users.entry(key).or_default().extend(uses);
        }
        users
    }
}

fn shape() -> prometheus::Result<IntCounterVec> {
    let opts = Opts::new(
        "kiam_metadata_imds_v1_requests_total",
        "Requests without a token of IMDSv2, by pod and client, of the pods that are on the node.",
    );
    IntCounterVec::new(opts, &["namespace", "pod", "sdk"])
}

impl Collector for V1Users {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(metric) = shape() else {
            return Vec::new();
        };
        for ((namespace, name), uses) in self.of(&self.view.load()) {
            for V1Use { sdk, requests } in uses {
                let labels = [&*namespace, &*name, sdk.as_label()];
                metric.with_label_values(&labels).inc_by(requests);
            }
        }
        metric.collect()
    }
}
