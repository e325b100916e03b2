//! `cargo xtask load`, with a cluster that is small: all pods are served, each by its own node's
//! stream alone, with one STS call for each identity.

use anyhow::{Result, ensure};
use bench::load::{Args, measure};

use crate::play::programs;
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[(
    "load::a_small_cluster_is_served",
    Needs::Programs,
    small_cluster,
)];

fn small_cluster() -> Result<()> {
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
    let report = measure(&args, &programs()?)?;
    ensure!(report.bound == 100, "{report:?}");
    Ok(())
}
