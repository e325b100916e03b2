//! Attacks on a node whose agent runs, and on one whose agent was killed. `cargo xtask attack` makes
//! them in every state of the agent.

use anyhow::Result;
use suites::attack::{Phase, play};

use crate::play::programs;
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[(
    "attack::nothing_reaches_the_service_or_another_s_credentials",
    Needs::Programs,
    attack,
)];

fn attack() -> Result<()> {
    play(&programs()?, &[Phase::Up, Phase::Killed])?.check()
}
