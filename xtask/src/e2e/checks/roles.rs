//! Who gets which role.

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::super::report::{Facts, short};
use super::super::world::{PERMITTED, ROLE, World};
use super::tools::{answers, has, is, seen};
use crate::cluster::PodTemplate;

pub(super) async fn own(world: &mut World) -> Result<Facts> {
    let mut facts = Facts::new();
    let mut places = Vec::new();
    for (namespace, name, role) in [
        ("orders", "api", "orders-db"),
        ("billing", "worker", "billing-reports"),
    ] {
        let template = PodTemplate {
            namespace,
            name,
            annotations: &[(ROLE, role)],
            ..Default::default()
        };
        let place = world.pod(&template).await?;
        // At once: an SDK waits for as long as the agent does.
        let who = is(world, &place, role)?;
        facts.push(format!("{namespace}/{name} is {who}"));
        places.push(place);
    }
    // And another's role is refused to who has one.
    answers(&places[0], "billing-reports", 403, &["orders-db", ROLE])?;
    answers(&places[1], "orders-db", 403, &["billing-reports", ROLE])?;
    Ok(facts)
}

pub(super) async fn of_account(world: &mut World) -> Result<Facts> {
    let annotations = [(ROLE, "billing-exports")];
    world
        .objects
        .service_account("billing", "exporter", &annotations)
        .await?;
    let template = PodTemplate {
        namespace: "billing",
        name: "exporter",
        service_account: "exporter",
        ..Default::default()
    };
    let place = world.pod(&template).await?;
    let who = is(world, &place, "billing-exports")?;
    Ok(vec![format!("billing/exporter is {who}")])
}

pub(super) async fn forbidden(world: &mut World) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "orders",
        name: "intruder",
        annotations: &[(ROLE, "billing-reports")],
        ..Default::default()
    };
    refused(world, &template, "billing-reports").await
}

pub(super) async fn without_permission(world: &mut World) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "newcomers",
        name: "first",
        annotations: &[(ROLE, "newcomers-files")],
        ..Default::default()
    };
    refused(world, &template, "newcomers-files").await
}

/// That a pod is refused the role it names, and told where that is decided.
async fn refused(world: &mut World, template: &PodTemplate<'_>, role: &str) -> Result<Facts> {
    let place = world.pod(template).await?;
    let PodTemplate {
        namespace, name, ..
    } = template;
    let whole_name = format!("{namespace}/{name}");
    let parts = [&*whole_name, *namespace, PERMITTED];
    let (told, _) = seen(|| answers(&place, "", 403, &parts)).await?;
    answers(&place, role, 403, &parts)?;
    let ended = world.caller_identity(&place)?;
    ensure!(
        !ended.status.success(),
        "the AWS CLI is {}",
        ended.stdout.trim()
    );
    Ok(vec![told])
}

pub(super) async fn early(world: &mut World) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "orders",
        name: "early",
        annotations: &[(ROLE, "orders-early")],
        ..Default::default()
    };
    let object = world.objects.pod(&template).await?;
    let kubelet = world.kubelets[0].clone();
    let node = kubelet.node().name().to_owned();
    let bound = Instant::now();
    world.objects.bind("orders", "early", &node).await?;
    let running = kubelet.start(&object).await?;
    let started = bound.elapsed();
    has(running.place(), "orders-early")?;
    let served = bound.elapsed();
    is(world, running.place(), "orders-early")?;
    // And when it is known, nothing changes.
    kubelet.report(&running).await?;
    is(world, running.place(), "orders-early")?;
    kubelet.stop(running).await?;
    Ok(vec![format!(
        "bound; its namespace was there after {}, its credentials were in it after {}",
        short(started),
        short(served)
    )])
}
