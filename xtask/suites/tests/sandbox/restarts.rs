//! A pod asks all the time, while the node's agent is upgraded and killed. `cargo xtask restarts` is
//! the longer run of the same.

use anyhow::Result;
use suites::restarts::{Args, play};
use toolchain::Consent;

use crate::play::programs;
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[(
    "restarts::upgrades_fail_no_request_and_kills_expose_none",
    Needs::Programs,
    restarts,
)];

fn restarts() -> Result<()> {
    let args = Args {
        rate: 50,
        seconds: 6,
        times: 3,
        programs: None,
        json: false,
        clients: false,
        consent: Consent::default(),
    };
    play(&args, &programs()?)?.check()
}
