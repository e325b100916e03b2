//! What a running pod does not notice.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::super::report::{Facts, short};
use super::super::world::{ROLE, World};
use super::tools::{Asking, has, is, seen};
use testbed::cluster::PodTemplate;
use testbed::sandbox::Place;

pub(super) async fn server(world: &mut World) -> Result<Facts> {
    let place = pod(world, "steady").await?;
    is(world, &place, "billing-steady")?;
    let asking = Asking::begin(&place, "billing-steady");
    let begin = Instant::now();
    world.stop_server()?;
    is(world, &place, "billing-steady").context("without a server")?;
    world.start_server()?;
    let away = begin.elapsed();
    let next = next(world, "after-server").await?;
    undisturbed(asking, away, next).await
}

pub(super) async fn api(world: &mut World) -> Result<Facts> {
    let place = pod(world, "calm").await?;
    is(world, &place, "billing-calm")?;
    let asking = Asking::begin(&place, "billing-calm");
    let begin = Instant::now();
    drop(world.plane.api_server().take().context("it runs")?);
    is(world, &place, "billing-calm").context("without the API")?;
    world.plane.start_api_server()?;
    world.plane.ready().await?;
    let away = begin.elapsed();
    let next = next(world, "after-api").await?;
    undisturbed(asking, away, next).await
}

/// A pod with the role of its name.
async fn pod(world: &mut World, name: &str) -> Result<Place> {
    let role = format!("billing-{name}");
    let template = PodTemplate {
        namespace: "billing",
        name,
        annotations: &[(ROLE, &role)],
        ..Default::default()
    };
    world.pod(&template).await
}

/// How long it takes now until a new pod has its credentials.
async fn next(world: &mut World, name: &str) -> Result<Duration> {
    let begin = Instant::now();
    let place = pod(world, name).await?;
    let role = format!("billing-{name}");
    seen(|| has(&place, &role)).await?;
    let took = begin.elapsed();
    is(world, &place, &role)?;
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
