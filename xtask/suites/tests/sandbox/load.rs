//! `cargo xtask load` with a small cluster: all pods are served, each by the stream of its own node
//! only, with one STS call for each identity.

use bench::load::{Args, measure};
use testbed::fixture::programs;

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_small_cluster_is_served() {
    let args = Args {
        pods: 1000,
        nodes: 20,
        namespaces: 30,
        roles: 40,
        rate: 50,
        seconds: 2,
        quiet: 1,
        programs: None,
        under: None,
        json: false,
        check: false,
    };
    let report = measure(&args, &programs()).unwrap();
    assert!(report.bound == 100, "{report:?}");
}
