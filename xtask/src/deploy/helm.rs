//! The chart, rendered and checked by helm.

use std::path::PathBuf;

use anyhow::Result;
use toolchain::{exec, helm, workspace};

/// The Kubernetes that templates are rendered for: the one of `xtask/testbed/cluster/go.mod` or
/// older.
const KUBERNETES: &str = "1.33.0";

/// Path of the chart.
pub(super) fn chart() -> PathBuf {
    workspace().join("deploy/helm/kiam")
}

/// Renders the chart as a release `kiam` in kube-system.
pub(super) fn template(arguments: &[&str]) -> Result<String> {
    let mut command = helm::command()?;
    command
        .args(["template", "kiam"])
        .arg(chart())
        .args(["--namespace=kube-system", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command)
}

/// `helm lint`, where warnings count too.
pub(super) fn lint(arguments: &[&str]) -> Result<()> {
    let mut command = helm::command()?;
    command
        .arg("lint")
        .arg(chart())
        .args(["--strict", "--quiet", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command).map(drop)
}
