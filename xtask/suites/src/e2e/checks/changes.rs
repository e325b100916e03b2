//! Changes in the API take effect on the node.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams};

use super::super::fixture::{Fixture, PERMITTED, ROLE};
use super::super::report::{Facts, short};
use super::tools::{answers, has, is, seen};
use testbed::cluster::PodTemplate;

pub(super) async fn role(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "billing",
        name: "changing",
        annotations: &[(ROLE, "billing-reader")],
        ..Default::default()
    };
    let place = fixture.pod(&template).await?;
    is(fixture, &place, "billing-reader")?;
    let objects = fixture.objects.clone();
    let pods = objects.api::<Pod>("billing");

    let other = Some("billing-writer");
    objects.annotate(&pods, "changing", ROLE, other).await?;
    let (_, changed) = seen(|| has(&place, "billing-writer")).await?;
    answers(&place, "billing-reader", 403, &["billing-writer"])?;
    is(fixture, &place, "billing-writer")?;

    objects.annotate(&pods, "changing", ROLE, None).await?;
    let (_, removed) = seen(|| answers(&place, "", 404, &[ROLE])).await?;
    answers(&place, "billing-writer", 404, &[ROLE])?;
    Ok(vec![format!(
        "another role: credentials after {}; no role: refused after {}",
        short(changed),
        short(removed)
    )])
}

pub(super) async fn permission(fixture: &mut Fixture) -> Result<Facts> {
    let objects = fixture.objects.clone();
    objects.namespace("shop", &[(PERMITTED, ".*")]).await?;
    let template = PodTemplate {
        namespace: "shop",
        name: "till",
        annotations: &[(ROLE, "shop-till")],
        ..Default::default()
    };
    let place = fixture.pod(&template).await?;
    is(fixture, &place, "shop-till")?;
    let namespaces = Api::<Namespace>::all(objects.client().clone());

    objects
        .annotate(&namespaces, "shop", PERMITTED, None)
        .await?;
    let refused = || answers(&place, "shop-till", 403, &[PERMITTED, "shop"]);
    let (_, withdrawn) = seen(refused).await?;

    let given = Some("arn:aws:iam::123456789012:role/shop-.*");
    objects
        .annotate(&namespaces, "shop", PERMITTED, given)
        .await?;
    let (_, given) = seen(|| has(&place, "shop-till")).await?;
    is(fixture, &place, "shop-till")?;
    Ok(vec![format!(
        "withdrawn: refused after {}; given: credentials after {}",
        short(withdrawn),
        short(given)
    )])
}

pub(super) async fn deletion(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "orders",
        name: "leaving",
        annotations: &[(ROLE, "orders-leaving")],
        ..Default::default()
    };
    let place = fixture.pod(&template).await?;
    is(fixture, &place, "orders-leaving")?;
    // It ends when its containers have ended, which may need credentials for that.
    let gracefully = DeleteParams::default().grace_period(30);
    let pods = fixture.objects.api::<Pod>("orders");
    let _terminating = pods.delete("leaving", &gracefully).await?;
    is(fixture, &place, "orders-leaving")?;
    // Its processes may outlive it, and have nothing.
    fixture.objects.delete_pod("orders", "leaving").await?;
    let refused = || answers(&place, "orders-leaving", 403, &["was deleted"]);
    let (_, ended) = seen(refused).await?;
    answers(&place, "", 403, &["was deleted"])?;
    Ok(vec![format!(
        "served while it terminates, refused {} after it was gone, a bounded wait included",
        short(ended)
    )])
}
