//! Faults of the Kubernetes API and of etcd.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use nix::sys::signal::Signal;
use toolchain::exec;

use super::{Fault, changes};
use crate::faults::fixture::Fixture;
use pod_client::ask::now;

const GROUP: &str = "api";
/// Watches are tried again after up to half a minute.
const WATCHES: Duration = Duration::from_secs(40);

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "the Kubernetes API is killed",
        GROUP,
        |w| kill(w).boxed_local(),
        |w| start(w).boxed_local(),
    )
    .recovers_within(WATCHES),
    Fault::new(
        "the Kubernetes API hangs (SIGSTOP)",
        GROUP,
        |w| signal(w, Signal::SIGSTOP).boxed_local(),
        |w| signal(w, Signal::SIGCONT).boxed_local(),
    )
    .recovers_within(WATCHES),
    Fault::new(
        "the Kubernetes API takes a second longer",
        GROUP,
        |w| slow(w, Duration::from_millis(500)).boxed_local(),
        |w| slow(w, Duration::ZERO).boxed_local(),
    )
    .serves_new_pods(),
    Fault::new(
        "etcd is lost and comes back",
        GROUP,
        |w| async { etcd(w) }.boxed_local(),
        |w| etcd_again(w).boxed_local(),
    )
    .recovers_within(WATCHES),
    Fault::new(
        "watches' history is compacted away (410)",
        GROUP,
        |w| compact(w).boxed_local(),
        |w| uncompact(w).boxed_local(),
    )
    .recovers_within(WATCHES),
];

/// The servers lose the API, a role changes, and the history that contains the change is gone.
async fn compact(fixture: &mut Fixture) -> Result<()> {
    fixture.api_way.open(false);
    changes::role(fixture, Some(changes::OTHER_ROLE)).await?;
    let client = fixture.plane.client().await?;
    let pods = kube::Api::<Pod>::all(client);
    let newest = pods.list(&ListParams::default().limit(1)).await?;
    let revision = newest
        .metadata
        .resource_version
        .context("a list has a version")?;
    let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--fail",
        "-d",
        &body,
        "http://127.0.0.1:2379/v3/kv/compaction",
    ]);
    exec(&mut curl)?;
    // Its watch cache would remember.
    drop(fixture.plane.api_server().take().context("it runs")?);
    start(fixture).await
}

async fn uncompact(fixture: &mut Fixture) -> Result<()> {
    fixture.api_way.open(true);
    fixture.clients[changes::CHANGED].excuse(now() + WATCHES.as_millis() as u64);
    changes::role(fixture, Some(changes::OWN_ROLE)).await
}

async fn kill(fixture: &mut Fixture) -> Result<()> {
    drop(fixture.plane.api_server().take().context("it runs")?);
    Ok(())
}

async fn start(fixture: &mut Fixture) -> Result<()> {
    fixture.plane.start_api_server()?;
    fixture.plane.ready().await.map(drop)
}

async fn signal(fixture: &mut Fixture, signal: Signal) -> Result<()> {
    let api = fixture.plane.api_server().as_ref().context("it runs")?;
    api.signal(signal)
}

async fn slow(fixture: &mut Fixture, delay: Duration) -> Result<()> {
    fixture.api_way.delay(delay);
    Ok(())
}

async fn etcd_again(fixture: &mut Fixture) -> Result<()> {
    fixture.plane.start_etcd()?;
    fixture.plane.ready().await.map(drop)
}

fn etcd(fixture: &mut Fixture) -> Result<()> {
    drop(fixture.plane.etcd().take().context("it runs")?);
    Ok(())
}
