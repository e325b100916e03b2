//! Faults of certificates' files. New connections use the changed files, so the faults
//! also break existing ones.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;

use super::{Fault, RECONNECT, network, nothing};
use crate::faults::fixture::{AGENT, Fixture};
use testbed::pki::{Authority, Leaf, SERVER};

const GROUP: &str = "certificates";

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "certificates are rotated",
        GROUP,
        |w| rotate(w).boxed_local(),
        nothing,
    )
    .serves_new_pods(),
    Fault::new(
        "the servers' certificate has expired",
        GROUP,
        |w| expire(w).boxed_local(),
        |w| server(w, &SERVER).boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(RECONNECT),
    Fault::new(
        "the servers have another CA",
        GROUP,
        |w| another_ca(w).boxed_local(),
        |w| server(w, &SERVER).boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(RECONNECT),
    Fault::new(
        "the servers' certificate is written by half",
        GROUP,
        |w| torn(w).boxed_local(),
        |w| server(w, &SERVER).boxed_local(),
    )
    .serves_new_pods(),
];

/// Checks that the written files are in use, and that new connections show it.
async fn taken_in(fixture: &Fixture) -> Result<()> {
    // Writers are waited for, some 200 ms, and there is no telling from outside.
    tokio::time::sleep(Duration::from_secs(1)).await;
    network::cut(fixture)
}

async fn server(fixture: &mut Fixture, leaf: &Leaf<'_>) -> Result<()> {
    write(fixture, &fixture.authority, leaf)
}

fn write(fixture: &Fixture, authority: &Authority, leaf: &Leaf<'_>) -> Result<()> {
    let folder = fixture
        .servers
        .tls
        .cert
        .parent()
        .context("it is in a folder")?;
    authority.write(folder, leaf).map(drop)
}

async fn rotate(fixture: &mut Fixture) -> Result<()> {
    server(fixture, &SERVER).await?;
    for node in &fixture.nodes {
        let folder = node.tls.cert.parent().context("it is in a folder")?;
        fixture.authority.write(folder, &AGENT)?;
    }
    taken_in(fixture).await
}

async fn expire(fixture: &mut Fixture) -> Result<()> {
    let expired = Leaf {
        expired: true,
        ..SERVER
    };
    server(fixture, &expired).await?;
    taken_in(fixture).await
}

async fn another_ca(fixture: &mut Fixture) -> Result<()> {
    write(fixture, &Authority::new("another")?, &SERVER)?;
    taken_in(fixture).await
}

async fn torn(fixture: &mut Fixture) -> Result<()> {
    let path = &fixture.servers.tls.cert;
    let whole = std::fs::read(path)?;
    std::fs::write(path, &whole[..whole.len() / 2])?;
    taken_in(fixture).await
}
