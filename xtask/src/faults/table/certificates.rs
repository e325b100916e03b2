//! Faults of certificates' files. What they change is seen by new connections, so those that there
//! are break as well.

use anyhow::{Context as _, Result};
use futures::FutureExt as _;

use super::{Fault, RECONNECT, network, nothing};
use crate::faults::world::{AGENT, World};
use crate::pki::{Authority, Leaf, SERVER};

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

async fn server(world: &mut World, leaf: &Leaf<'_>) -> Result<()> {
    write(world, &world.authority, leaf)
}

fn write(world: &World, authority: &Authority, leaf: &Leaf<'_>) -> Result<()> {
    let folder = world
        .servers
        .tls
        .cert
        .parent()
        .context("it is in a folder")?;
    authority.write(folder, leaf).map(drop)
}

async fn rotate(world: &mut World) -> Result<()> {
    server(world, &SERVER).await?;
    for node in &world.nodes {
        let folder = node.tls.cert.parent().context("it is in a folder")?;
        world.authority.write(folder, &AGENT)?;
    }
    network::cut(world)
}

async fn expire(world: &mut World) -> Result<()> {
    let expired = Leaf {
        expired: true,
        ..SERVER
    };
    server(world, &expired).await?;
    network::cut(world)
}

async fn another_ca(world: &mut World) -> Result<()> {
    write(world, &Authority::new("another")?, &SERVER)?;
    network::cut(world)
}

async fn torn(world: &mut World) -> Result<()> {
    let path = &world.servers.tls.cert;
    let whole = std::fs::read(path)?;
    std::fs::write(path, &whole[..whole.len() / 2])?;
    network::cut(world)
}
