//! helm, built once from its Go module into the user's cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::Plan;
use crate::go::GoTool;

const HELM: GoTool = GoTool {
    name: "helm",
    package: "helm.sh/helm/v3/cmd/helm",
    version: "3.22.0",
    why: "renders and checks the chart",
    seconds: 120,
};

/// Adds missing parts to the plan.
pub fn plan(plan: &mut Plan) {
    HELM.plan(plan);
}

/// Folder that it is in, for `PATH`.
///
/// # Errors
/// Fails when it is not built yet.
pub fn folder() -> Result<PathBuf> {
    let path = HELM.path()?;
    Ok(path.parent().unwrap_or(&path).to_owned())
}

/// Command line of it.
///
/// # Errors
/// Fails when it is not built yet.
pub fn command() -> Result<Command> {
    HELM.command()
}
