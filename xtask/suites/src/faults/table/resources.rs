//! Exhausted resources: file descriptors, memory, disks; and many pods at once.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use futures::StreamExt as _;
use toolchain::exec;

use super::{Fault, NO_AGENT, RECONNECT, agents, servers};
use crate::faults::fixture::{Fixture, NAMESPACES, ROLE};
use testbed::cluster::PodTemplate;
use testbed::sandbox::Program;

const GROUP: &str = "resources";
/// The node of the crowd.
const CROWDED: usize = 1;
const CROWD: usize = 1000;
/// Number of pods in the crowd with the same role.
const SHARE: usize = 50;
/// Requests to the API at a time.
const AT_ONCE: usize = 16;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "an agent has no file descriptor left",
        GROUP,
        |w| async { starve(w.nodes[2].program()?) }.boxed_local(),
        |w| async { feed(w.nodes[2].program()?) }.boxed_local(),
    )
    .fails("the agent can accept no connection"),
    Fault::new(
        "the servers have no file descriptor left",
        GROUP,
        |w| {
            async { starve(w.servers.program(0)?).and(starve(w.servers.program(1)?)) }.boxed_local()
        },
        |w| async { feed(w.servers.program(0)?).and(feed(w.servers.program(1)?)) }.boxed_local(),
    ),
    Fault::new(
        "no memory left for 1,000 pods: an agent and a server",
        GROUP,
        |w| no_memory(w).boxed_local(),
        |w| memory(w).boxed_local(),
    )
    .fails(NO_AGENT)
    .recovers_within(RECONNECT),
    Fault::new(
        "a server's disk is full (audit log)",
        GROUP,
        |w| async { w.servers.fill_disk(1) }.boxed_local(),
        |w| async { w.servers.free_disk(1) }.boxed_local(),
    )
    .serves_new_pods(),
    Fault::new(
        "1,000 pods start at once on one node",
        GROUP,
        |w| crowd(w).boxed_local(),
        |w| disperse(w).boxed_local(),
    )
    .serves_new_pods()
    .recovers_within(Duration::from_secs(20)),
];

fn limit(program: &Program, limit: &str) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.arg(format!("--pid={}", program.pid())).arg(limit);
    exec(&mut command).map(drop)
}

/// Limits the descriptors to those in use below the first free one.
fn starve(program: &Program) -> Result<()> {
    let folder = PathBuf::from(format!("/proc/{}/fd", program.pid()));
    let free = (0..).find(|number: &u32| !folder.join(number.to_string()).is_symlink());
    limit(
        program,
        &format!("--nofile={}:", free.context("one is free")?),
    )
}

fn feed(program: &Program) -> Result<()> {
    limit(program, "--nofile=1024:")
}

/// Not a page more than now; and then there is much to be remembered.
async fn no_memory(fixture: &mut Fixture) -> Result<()> {
    limit(fixture.nodes[CROWDED].program()?, "--as=1000000")?;
    limit(fixture.servers.program(0)?, "--as=1000000")?;
    crowd(fixture).await
}

/// Both are started again, as a kubelet does when they have ended, and soon after if they have not.
async fn memory(fixture: &mut Fixture) -> Result<()> {
    disperse(fixture).await?;
    fixture.nodes[CROWDED].kill_or_clear();
    fixture.servers.kill_or_clear(0);
    servers::start(fixture, 0).await?;
    agents::start(fixture, CROWDED).await
}

/// Pods with a role, on the second node; they are in the API only.
async fn crowd(fixture: &mut Fixture) -> Result<()> {
    let node = fixture.nodes[CROWDED].name().to_owned();
    let objects = &fixture.objects;
    let made = (0..CROWD).map(|number| {
        let node = node.as_str();
        async move {
            let (name, role) = (
                format!("crowd-{number}"),
                format!("crowd-{}", number / SHARE),
            );
            let template = PodTemplate {
                namespace: NAMESPACES[0],
                name: &name,
                annotations: &[(ROLE, &role)],
                ..PodTemplate::default()
            };
            objects.pod(&template).await?;
            objects.bind(template.namespace, &name, node).await
        }
    });
    let mut made = futures::stream::iter(made).buffer_unordered(AT_ONCE);
    while let Some(made) = made.next().await {
        made?;
    }
    Ok(())
}

async fn disperse(fixture: &mut Fixture) -> Result<()> {
    let objects = &fixture.objects;
    let gone = (0..CROWD).map(|number| async move {
        let name = format!("crowd-{number}");
        objects.delete_pod(NAMESPACES[0], &name).await
    });
    let mut gone = futures::stream::iter(gone).buffer_unordered(AT_ONCE);
    while let Some(gone) = gone.next().await {
        gone?;
    }
    Ok(())
}
