//! helm, built once from its Go module into the user's cache.

use std::path::PathBuf;

use anyhow::Result;
use toolchain::{Plan, exec, go::GoTool, workspace};

const HELM: GoTool = GoTool {
    name: "helm",
    package: "helm.sh/helm/v3/cmd/helm",
    version: "3.22.0",
    why: "renders and checks the chart",
    seconds: 120,
};
/// The Kubernetes that templates are rendered for: the one of `xtask/cluster/go.mod` or older.
const KUBERNETES: &str = "1.33.0";

/// Adds what is missing.
pub(crate) fn plan(plan: &mut Plan) {
    HELM.plan(plan);
}

/// The folder that it is in, for `PATH`.
pub(crate) fn folder() -> Result<PathBuf> {
    let path = HELM.path()?;
    Ok(path.parent().unwrap_or(&path).to_owned())
}

/// Where the chart is.
pub(super) fn chart() -> PathBuf {
    workspace().join("deploy/helm/kiam")
}

/// Renders the chart as a release `kiam` in kube-system.
pub(super) fn template(arguments: &[&str]) -> Result<String> {
    let mut command = HELM.command()?;
    command
        .args(["template", "kiam"])
        .arg(chart())
        .args(["--namespace=kube-system", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command)
}

/// `helm lint`, where warnings count too.
pub(super) fn lint(arguments: &[&str]) -> Result<()> {
    let mut command = HELM.command()?;
    command
        .arg("lint")
        .arg(chart())
        .args(["--strict", "--quiet", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command).map(drop)
}
