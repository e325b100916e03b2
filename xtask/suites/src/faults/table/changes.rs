//! Changes of roles and permissions, which must take effect at once.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::Api;

use super::Fault;
use crate::faults::fixture::{Fixture, NAMESPACES, PERMITTED, ROLE};
use testbed::doubles::sts::{Behavior, Fault as StsFault};
use testbed::file_cluster::BASE_ARN;

const GROUP: &str = "changes";
/// A pod of the first node, with a fast client.
pub(super) const CHANGED: usize = 3;
pub(super) const OWN_ROLE: &str = "role-3";
pub(super) const OTHER_ROLE: &str = "role-other";

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "a pod's role is changed",
        GROUP,
        |w| role(w, Some(OTHER_ROLE)).boxed_local(),
        |w| role(w, Some(OWN_ROLE)).boxed_local(),
    )
    .serves_new_pods(),
    Fault::new(
        "a pod's role is taken away",
        GROUP,
        |w| role(w, None).boxed_local(),
        |w| role(w, Some(OWN_ROLE)).boxed_local(),
    ),
    Fault::new(
        "a namespace's permission is withdrawn",
        GROUP,
        |w| permission(w, None).boxed_local(),
        |w| permission(w, Some(".*")).boxed_local(),
    ),
    Fault::new(
        "a role is deleted (STS denies it)",
        GROUP,
        |w| deleted(w, true).boxed_local(),
        |w| deleted(w, false).boxed_local(),
    )
    .serves_new_pods(),
    Fault::new(
        "a pod is deleted, and its address another's at once",
        GROUP,
        |w| readdressed(w, true).boxed_local(),
        |w| gone(w).boxed_local(),
    ),
    Fault::new(
        "a pod's address is another's while its object is still there",
        GROUP,
        |w| readdressed(w, false).boxed_local(),
        |w| gone(w).boxed_local(),
    ),
];

/// A pod ends and another one gets its address; the first one's object is deleted before that, or
/// when the fault is over.
async fn readdressed(fixture: &mut Fixture, deleted: bool) -> Result<()> {
    let number = fixture.fresh();
    let (name, role) = (
        format!("leaving-{number}"),
        format!("role-leaving-{number}"),
    );
    fixture.pod(0, &name, &role).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leaving = fixture.clients.pop().context("it was made just now")?;
    let ip = leaving.pod.pod().ip();
    let kubelet = fixture.nodes[0].kubelet.clone();
    let (namespace, name) = kubelet.empty(leaving.end()).await?;
    if deleted {
        fixture.objects.delete_pod(&namespace, &name).await?;
    } else {
        fixture.left.push((namespace, name));
    }
    let (name, role) = (format!("coming-{number}"), format!("role-coming-{number}"));
    fixture.pod_at(0, &name, &role, ip).await
}

/// Deletes the pods that were left.
async fn gone(fixture: &mut Fixture) -> Result<()> {
    for (namespace, name) in std::mem::take(&mut fixture.left) {
        fixture.objects.delete_pod(&namespace, &name).await?;
    }
    Ok(())
}

pub(super) async fn role(fixture: &mut Fixture, role: Option<&str>) -> Result<()> {
    let client = &mut fixture.clients[CHANGED];
    let pods = fixture.objects.api::<Pod>(client.pod.namespace());
    let name = client.pod.name().to_owned();
    client.expect(role);
    fixture.objects.annotate(&pods, &name, ROLE, role).await
}

async fn permission(fixture: &mut Fixture, permitted: Option<&str>) -> Result<()> {
    let namespaces = Api::<Namespace>::all(fixture.objects.client().clone());
    let shop = NAMESPACES[1];
    for client in &mut fixture.clients {
        if client.pod.namespace() == shop {
            let number = client
                .pod
                .name()
                .strip_prefix("pod-")
                .context("its number")?;
            let role = format!("role-{number}");
            client.expect(permitted.map(|_| role.as_str()));
        }
    }
    let objects = &fixture.objects;
    objects
        .annotate(&namespaces, shop, PERMITTED, permitted)
        .await
}

async fn deleted(fixture: &mut Fixture, deleted: bool) -> Result<()> {
    let role = format!("{BASE_ARN}role-3");
    let fault = deleted.then_some(StsFault::AccessDenied);
    let behavior = Behavior {
        fault,
        ..fixture.usual()
    };
    fixture.sts.behave(Some(&role), behavior);
    Ok(())
}
