//! Outages that a running pod does not notice.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::super::fixture::{Fixture, ROLE};
use super::super::report::{Facts, short};
use super::tools::{Asking, has, is, seen};
use testbed::cluster::PodTemplate;
use testbed::sandbox::Place;

pub(super) async fn server(fixture: &mut Fixture) -> Result<Facts> {
    let place = pod(fixture, "steady").await?;
    is(fixture, &place, "billing-steady")?;
    let asking = Asking::begin(&place, "billing-steady");
    let begin = Instant::now();
    fixture.stop_server()?;
    is(fixture, &place, "billing-steady").context("without a server")?;
    fixture.start_server()?;
    let away = begin.elapsed();
    let next = next(fixture, "after-server").await?;
    undisturbed(asking, away, next).await
}

pub(super) async fn api(fixture: &mut Fixture) -> Result<Facts> {
    let place = pod(fixture, "calm").await?;
    is(fixture, &place, "billing-calm")?;
    let asking = Asking::begin(&place, "billing-calm");
    let begin = Instant::now();
    drop(fixture.plane.api_server().take().context("it runs")?);
    is(fixture, &place, "billing-calm").context("without the API")?;
    fixture.plane.start_api_server()?;
    fixture.plane.ready().await?;
    let away = begin.elapsed();
    let next = next(fixture, "after-api").await?;
    undisturbed(asking, away, next).await
}

/// A pod with the role of its name.
async fn pod(fixture: &mut Fixture, name: &str) -> Result<Place> {
    let role = format!("billing-{name}");
    let template = PodTemplate {
        namespace: "billing",
        name,
        annotations: &[(ROLE, &role)],
        ..Default::default()
    };
    fixture.pod(&template).await
}

/// Time until a new pod has its credentials.
async fn next(fixture: &mut Fixture, name: &str) -> Result<Duration> {
    let begin = Instant::now();
    let place = pod(fixture, name).await?;
    let role = format!("billing-{name}");
    seen(|| has(&place, &role)).await?;
    let took = begin.elapsed();
    is(fixture, &place, &role)?;
    Ok(took)
}

async fn undisturbed(asking: Asking, away: Duration, next: Duration) -> Result<Facts> {
    let asked = asking.end().await?;
    Ok(vec![format!(
        "away for {}; the pod asked {asked} times and got its credentials each time; \
         the next new pod had its own after {}",
        short(away),
        short(next)
    )])
}
