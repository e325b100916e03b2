//! Checks of the whole path. Each check makes its own pods, so that it can also run alone.

mod changes;
mod dashboards;
mod explain;
mod metrics;
mod migration;
mod outages;
mod proof;
mod rights;
mod roles;
mod taint;
mod tools;

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use super::fixture::Fixture;
use super::report::Facts;
use testbed::cluster::PodTemplate;
use testbed::doubles::imds::Imds;
use testbed::probe::{METADATA_SERVICE, Prober};

/// A check, with the statement that it proves as its name.
pub(super) type NamedCheck = (&'static str, Check);
type Check = fn(&mut Fixture) -> LocalBoxFuture<'_, Result<Facts>>;

/// Limit for a check.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

pub(super) const CHECKS: &[NamedCheck] = &[
    ("pods are their own roles to every SDK", |w| {
        roles::own(w).boxed_local()
    }),
    ("a role comes from the service account too", |w| {
        roles::of_account(w).boxed_local()
    }),
    (
        "a role that the namespace does not permit is refused",
        |w| roles::forbidden(w).boxed_local(),
    ),
    ("a namespace without the annotation permits nothing", |w| {
        roles::without_permission(w).boxed_local()
    }),
    ("a pod is served before the API knows its address", |w| {
        roles::early(w).boxed_local()
    }),
    ("a pod's role follows its annotation at once", |w| {
        changes::role(w).boxed_local()
    }),
    ("what a namespace permits is followed at once", |w| {
        changes::permission(w).boxed_local()
    }),
    ("a pod's grant ends with the pod, and not before", |w| {
        changes::deletion(w).boxed_local()
    }),
    (
        "the server explains why a pod gets its role, or does not",
        |w| explain::answers(w).boxed_local(),
    ),
    // Before the API crashes: it refuses what it can while it starts.
    ("server and agent have no more rights than they need", |w| {
        rights::exact(w).boxed_local()
    }),
    ("every exported metric is documented", |w| {
        metrics::documented(w).boxed_local()
    }),
    (
        "a node is tainted until its agent guards it, and again when that is gone",
        |w| taint::keeps(w).boxed_local(),
    ),
    ("a restart of the server does not disturb a pod", |w| {
        outages::server(w).boxed_local()
    }),
    (
        "a crash of the Kubernetes API does not disturb a pod",
        |w| outages::api(w).boxed_local(),
    ),
    ("an agent gets nothing of another node", |w| {
        proof::other_node(w).boxed_local()
    }),
    ("an agent with another token gets nothing", |w| {
        proof::other_tokens(w).boxed_local()
    }),
    ("a cluster moves over from kiam v4, node by node", |w| {
        migration::node_by_node(w).boxed_local()
    }),
    ("dashboards show this run", |w| {
        dashboards::drawn(w).boxed_local()
    }),
    ("nothing reached the nodes' own metadata services", |w| {
        no_leak(w).boxed_local()
    }),
];

async fn no_leak(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "billing",
        name: "digger",
        ..Default::default()
    };
    let pod = fixture.pod(&template).await?;
    let prober = Prober::new()?;
    let url = format!("{METADATA_SERVICE}/latest/meta-data/instance-id");
    let refused = prober.get(&pod, &url)?.answer()?;
    ensure!(
        refused.status == 404,
        "{}: {}",
        refused.status,
        refused.body
    );
    let seen = |imds: &Imds| (imds.traffic().connections(), imds.traffic().bytes());
    for (imds, kubelet) in fixture.imds.iter().zip(&fixture.kubelets) {
        let (connections, bytes) = seen(imds);
        ensure!(connections == 0, "{connections} connections, {bytes} bytes");
        // It would have been seen: the node's own processes reach it.
        prober.get(kubelet.node().place(), &url)?.answer()?;
        ensure!(seen(imds).0 == 1, "the node's own request was not seen");
    }
    Ok(Facts::new())
}
