//! The settings that are checked: those of the agent of this container, or what this command was told.

use super::Finding;
use crate::args::RunningAgent;

pub(super) fn finding() -> Finding {
    const CHECK: &str = "settings";
    Finding::ok(
        CHECK,
        RunningAgent::find().map_or_else(
            || {
                "this command's flags and the defaults: no agent is process 1 here, as it is in its \
                 container"
                    .to_owned()
            },
            |agent| {
                format!(
                    "as the agent of this container was told: {}",
                    agent.summary()
                )
            },
        ),
    )
}
