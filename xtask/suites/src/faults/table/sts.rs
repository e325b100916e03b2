//! Faults of STS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use jiff::SignedDuration;

use super::Fault;
use crate::faults::fixture::Fixture;
use testbed::doubles::sts::{Behavior, Fault as StsFault};
use testbed::file_cluster::BASE_ARN;

const GROUP: &str = "sts";
/// New roles are requested at once; those that failed wait up to half a minute.
const RETRIES: Duration = Duration::from_secs(20);

const fn fault(name: &'static str, inject: super::Action) -> Fault {
    Fault::new(name, GROUP, inject, |w| change(w, |_| ()).boxed_local())
        .starves_new_pods()
        .recovers_within(RETRIES)
}

pub(super) const FAULTS: &[Fault] = &[
    fault("STS throttles", |w| {
        fails(w, StsFault::Throttling).boxed_local()
    }),
    fault("STS fails (500)", |w| {
        fails(w, StsFault::InternalFailure).boxed_local()
    }),
    fault("STS fails (503)", |w| {
        fails(w, StsFault::ServiceUnavailable).boxed_local()
    }),
    fault("STS denies access", |w| {
        fails(w, StsFault::AccessDenied).boxed_local()
    }),
    fault("STS takes 10 s", |w| {
        change(w, |sts| sts.latency = Duration::from_secs(10)).boxed_local()
    }),
    fault("STS hangs", |w| fails(w, StsFault::Hang).boxed_local()),
    fault("STS closes connections", |w| {
        fails(w, StsFault::Disconnect).boxed_local()
    }),
    fault("STS gives out expired credentials", |w| {
        change(w, |sts| sts.lifetime = Some(SignedDuration::from_secs(-60))).boxed_local()
    }),
    fault("STS answers with what is no XML", |w| {
        fails(w, StsFault::Garbage).boxed_local()
    }),
    fault("STS answers without credentials", |w| {
        fails(w, StsFault::NoCredentials).boxed_local()
    }),
    Fault::new(
        "credentials end while STS fails",
        GROUP,
        |w| ends(w).boxed_local(),
        |w| ended(w).boxed_local(),
    )
    .fails("what has ended is not handed out"),
];

const ENDING: &str = "role-ending";

/// A pod whose credentials end before the others': of its own role, which then is denied.
async fn ends(fixture: &mut Fixture) -> Result<()> {
    let role = format!("{BASE_ARN}{ENDING}");
    let lifetime = Some(SignedDuration::from_secs(8));
    let behavior = Behavior {
        lifetime,
        ..Behavior::default()
    };
    fixture.sts.behave(Some(&role), behavior.clone());
    fixture.pod(0, "ending", ENDING).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let fault = Some(StsFault::InternalFailure);
    fixture
        .sts
        .behave(Some(&role), Behavior { fault, ..behavior });
    tokio::time::sleep(Duration::from_secs(7)).await;
    Ok(())
}

async fn ended(fixture: &mut Fixture) -> Result<()> {
    let role = format!("{BASE_ARN}{ENDING}");
    fixture.sts.behave(Some(&role), fixture.usual());
    // Not needed any more: the server waits before it requests this role again.
    fixture.clients.last().context("the pod's client")?.stop()
}

async fn fails(fixture: &mut Fixture, fault: StsFault) -> Result<()> {
    change(fixture, |sts| sts.fault = Some(fault)).await
}

async fn change(fixture: &mut Fixture, change: impl FnOnce(&mut Behavior)) -> Result<()> {
    fixture.sts_behaves(change);
    Ok(())
}
