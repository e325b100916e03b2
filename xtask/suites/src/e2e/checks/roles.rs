//! Assignment of roles to pods.

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::events::v1::Event;
use kube::api::{WatchEvent, WatchParams};
use tokio::time::Instant;

use super::super::fixture::{Fixture, PERMITTED, ROLE};
use super::super::report::{Facts, short};
use super::tools::{answers, has, is, sdk_is, seen};
use testbed::cluster::PodTemplate;
use testbed::sdk::Sdk;

/// Limit until a pod gets the reason why it has no role.
const EVENT_SECONDS: u32 = 15;

pub(super) async fn own(fixture: &mut Fixture) -> Result<Facts> {
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
        let place = fixture.pod(&template).await?;
        // At once: an SDK waits for as long as the agent does.
        for sdk in Sdk::ALL {
            let who = sdk_is(fixture, sdk, &place, role)?;
            facts.push(format!("{namespace}/{name} is {who} to {}", sdk.name()));
        }
        places.push(place);
    }
    // And another's role is refused to who has one.
    answers(&places[0], "billing-reports", 403, &["orders-db", ROLE])?;
    answers(&places[1], "orders-db", 403, &["billing-reports", ROLE])?;
    Ok(facts)
}

pub(super) async fn of_account(fixture: &mut Fixture) -> Result<Facts> {
    let annotations = [(ROLE, "billing-exports")];
    fixture
        .objects
        .service_account("billing", "exporter", &annotations)
        .await?;
    let template = PodTemplate {
        namespace: "billing",
        name: "exporter",
        service_account: "exporter",
        ..Default::default()
    };
    let place = fixture.pod(&template).await?;
    let who = is(fixture, &place, "billing-exports")?;
    Ok(vec![format!("billing/exporter is {who}")])
}

pub(super) async fn forbidden(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "orders",
        name: "intruder",
        annotations: &[(ROLE, "billing-reports")],
        ..Default::default()
    };
    refused(fixture, &template, "billing-reports").await
}

pub(super) async fn without_permission(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "newcomers",
        name: "first",
        annotations: &[(ROLE, "newcomers-files")],
        ..Default::default()
    };
    refused(fixture, &template, "newcomers-files").await
}

/// Checks that a pod is refused the role it names, with the annotation that decides it.
async fn refused(fixture: &mut Fixture, template: &PodTemplate<'_>, role: &str) -> Result<Facts> {
    let place = fixture.pod(template).await?;
    let PodTemplate {
        namespace, name, ..
    } = template;
    let whole_name = format!("{namespace}/{name}");
    let parts = [&*whole_name, *namespace, PERMITTED];
    let (reply, _) = seen(|| answers(&place, "", 403, &parts)).await?;
    answers(&place, role, 403, &parts)?;
    let ended = fixture.caller_identity(Sdk::Cli, &place)?;
    ensure!(
        !ended.status.success(),
        "the AWS CLI is {}",
        ended.stdout.trim()
    );
    let event = warning(fixture, namespace, name, "KiamRoleForbidden").await?;
    ensure!(
        event.contains(namespace) && event.contains(PERMITTED),
        "the Event reads {event:?}"
    );
    Ok(vec![
        format!("in the pod: {reply}"),
        format!("on the pod: {event}"),
    ])
}

/// The Event of this reason on a pod, as soon as there is one. Returns its text.
async fn warning(fixture: &Fixture, namespace: &str, pod: &str, reason: &str) -> Result<String> {
    let api = fixture.objects.api::<Event>(namespace);
    let limit = WatchParams::default().timeout(EVENT_SECONDS);
    // From the start, so that existing Events come first.
    let mut events = api.watch(&limit, "0").await?.boxed_local();
    while let Some(event) = events.try_next().await? {
        let WatchEvent::Added(event) = event else {
            continue;
        };
        let regarding = event.regarding.and_then(|object| object.name);
        if regarding.as_deref() == Some(pod) && event.reason.as_deref() == Some(reason) {
            return event.note.context("the Event has no text");
        }
    }
    bail!("no Event {reason} on {namespace}/{pod} within {EVENT_SECONDS} s")
}

pub(super) async fn early(fixture: &mut Fixture) -> Result<Facts> {
    let template = PodTemplate {
        namespace: "orders",
        name: "early",
        annotations: &[(ROLE, "orders-early")],
        ..Default::default()
    };
    let object = fixture.objects.pod(&template).await?;
    let kubelet = fixture.kubelets[0].clone();
    let node = kubelet.node().name().to_owned();
    let bound = Instant::now();
    fixture.objects.bind("orders", "early", &node).await?;
    let running = kubelet.start(&object).await?;
    let started = bound.elapsed();
    has(running.place(), "orders-early")?;
    let served = bound.elapsed();
    is(fixture, running.place(), "orders-early")?;
    // And when it is known, nothing changes.
    kubelet.report(&running).await?;
    is(fixture, running.place(), "orders-early")?;
    kubelet.stop(running).await?;
    Ok(vec![format!(
        "bound; its namespace was there after {}, its credentials were in it after {}",
        short(started),
        short(served)
    )])
}
