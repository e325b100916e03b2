//! A pod sends requests while the node's agent is upgraded and killed. `cargo xtask restarts` is a
//! longer run of the same.

use suites::restarts::{Args, run_suite};
use testbed::fixture::programs;
use toolchain::Consent;

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn upgrades_fail_no_request_and_kills_expose_no_credentials() {
    let args = Args {
        rate: 50,
        seconds: 6,
        times: 3,
        programs: None,
        json: false,
        clients: false,
        consent: Consent::default(),
    };
    let report = run_suite(&args, &programs()).unwrap();
    report.check_requests().unwrap();
}
