//! Steps of clocks, forward and back.

use anyhow::Result;
use futures::FutureExt as _;

use super::Fault;
use crate::faults::fixture::Fixture;

const GROUP: &str = "clocks";
const HOUR: i64 = 3600;
/// The node whose agent's clock is stepped.
const NODE: usize = 1;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "a server's clock is stepped forward by 1 h",
        GROUP,
        |w| async { w.servers.clock.step(HOUR) }.boxed_local(),
        |w| async { w.servers.clock.step(0) }.boxed_local(),
    ),
    Fault::new(
        "a server's clock is stepped back by 1 h",
        GROUP,
        |w| async { w.servers.clock.step(-HOUR) }.boxed_local(),
        |w| async { w.servers.clock.step(0) }.boxed_local(),
    ),
    Fault::new(
        "an agent's clock is stepped forward by 1 h",
        GROUP,
        |w| agent(w, HOUR).boxed_local(),
        |w| agent(w, 0).boxed_local(),
    )
    .fails("by its agent's clock all credentials have ended"),
    Fault::new(
        "an agent's clock is stepped back by 1 h",
        GROUP,
        |w| agent(w, -HOUR).boxed_local(),
        |w| agent(w, 0).boxed_local(),
    ),
];

async fn agent(fixture: &mut Fixture, seconds: i64) -> Result<()> {
    fixture.nodes[NODE].clock.step(seconds)
}
