//! Faults of the servers' processes.

use anyhow::Result;
use futures::FutureExt as _;
use nix::sys::signal::Signal;

use super::{Fault, RECONNECT, nothing};
use crate::faults::fixture::Fixture;

const GROUP: &str = "servers";

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "a server is killed",
        GROUP,
        |w| async { w.servers.kill(0) }.boxed_local(),
        |w| start(w, 0).boxed_local(),
    )
    .serves_new_pods(),
    Fault::new(
        "a server hangs (SIGSTOP)",
        GROUP,
        |w| async { w.servers.signal(1, Signal::SIGSTOP) }.boxed_local(),
        |w| async { w.servers.signal(1, Signal::SIGCONT) }.boxed_local(),
    ),
    Fault::new(
        "both servers are down",
        GROUP,
        |w| async { w.servers.kill(0).and(w.servers.kill(1)) }.boxed_local(),
        |w| both(w).boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(RECONNECT),
    Fault::new(
        "the servers are rolled",
        GROUP,
        |w| roll(w).boxed_local(),
        nothing,
    )
    .serves_new_pods(),
];

/// Starts one and waits until it serves.
pub(super) async fn start(fixture: &mut Fixture, which: usize) -> Result<()> {
    fixture.servers.start(which)?;
    fixture.servers.ready(which)
}

async fn both(fixture: &mut Fixture) -> Result<()> {
    fixture.servers.start(0)?;
    start(fixture, 1).await?;
    fixture.servers.ready(0)
}

async fn roll(fixture: &mut Fixture) -> Result<()> {
    for which in [0, 1] {
        fixture.servers.stop(which)?;
        start(fixture, which).await?;
    }
    Ok(())
}
