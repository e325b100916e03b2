//! Faults of the agents' processes.

use anyhow::Result;
use futures::FutureExt as _;
use nix::sys::signal::Signal;

use super::{Fault, NO_AGENT, nothing};
use crate::faults::fixture::Fixture;
use crate::faults::node::FaultNode;

const GROUP: &str = "agents";

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "an agent is killed and started again",
        GROUP,
        |w| async { w.nodes[0].kill() }.boxed_local(),
        |w| start(w, 0).boxed_local(),
    )
    .fails(NO_AGENT),
    Fault::new(
        "an agent hangs (SIGSTOP)",
        GROUP,
        |w| async { w.nodes[0].program()?.signal(Signal::SIGSTOP) }.boxed_local(),
        |w| async { w.nodes[0].program()?.signal(Signal::SIGCONT) }.boxed_local(),
    )
    .fails("the node's agent does not run"),
    Fault::new(
        "all agents are upgraded",
        GROUP,
        |w| async { w.nodes.iter_mut().try_for_each(FaultNode::upgrade) }.boxed_local(),
        nothing,
    )
    .serves_new_pods(),
];

/// Starts a node's agent and waits until it serves.
pub(super) async fn start(fixture: &mut Fixture, which: usize) -> Result<()> {
    let node = &mut fixture.nodes[which];
    node.start()?;
    node.ready()
}
