//! Attacks on a node whose agent runs, and on one whose agent was killed. `cargo xtask attack` runs
//! them in every state of the agent.

use suites::attack::{Phase, run_suite};
use testbed::fixture::programs;

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn no_attack_reaches_the_metadata_service_or_credentials_of_others() {
    let report = run_suite(&programs(), &[Phase::Up, Phase::Killed]).unwrap();
    report.check().unwrap();
}
