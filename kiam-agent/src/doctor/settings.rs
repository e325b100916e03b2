//! The flags that are checked: those of the agent in this container, or those of this command.

use super::Finding;
use crate::args::RunningAgent;

pub(super) fn finding() -> Finding {
    const CHECK: &str = "settings";
    Finding::ok(
        CHECK,
        RunningAgent::find().map_or_else(
            || {
                "flags of this command, and defaults: process 1 is not an agent, so this is not the container \
                of one"
                    .to_owned()
            },
            |agent| {
                format!(
                    "flags of the agent in this container: {}",
                    agent.summary()
                )
            },
        ),
    )
}
