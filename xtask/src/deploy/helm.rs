//! helm, built once from its Go module into the user's cache.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf::workspace;
use crate::cluster::go;
use crate::sandbox::exec;
use crate::setup::{Cache, Plan, Step};

const VERSION: &str = "3.22.0";
/// The Kubernetes that templates are rendered for: the one of `xtask/cluster/go.mod` or older.
const KUBERNETES: &str = "1.33.0";

/// Adds what is missing.
pub(crate) fn plan(plan: &mut Plan) {
    let cache = cache();
    if cache.is_complete() {
        return;
    }
    go::plan(plan);
    plan.step(Step {
        what: format!(
            "helm {VERSION}, built by Go into {}",
            cache.path().display()
        ),
        why: "renders and checks the chart",
        about: Some(Duration::from_secs(120)),
        run: Box::new(move || build(&cache)),
    });
}

/// Where the chart is.
pub(super) fn chart() -> PathBuf {
    workspace().join("deploy/helm/kiam")
}

/// Renders the chart as a release `kiam` in kube-system.
pub(super) fn template(arguments: &[&str]) -> Result<String> {
    let mut command = helm()?;
    command
        .args(["template", "kiam"])
        .arg(chart())
        .args(["--namespace=kube-system", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command)
}

/// `helm lint`, where warnings count too.
pub(super) fn lint(arguments: &[&str]) -> Result<()> {
    let mut command = helm()?;
    command
        .arg("lint")
        .arg(chart())
        .args(["--strict", "--quiet", "--kube-version", KUBERNETES])
        .args(arguments);
    exec(&mut command).map(drop)
}

fn helm() -> Result<Command> {
    let cache = cache();
    ensure!(cache.is_complete(), "helm is not built yet");
    Ok(Command::new(cache.path().join("bin/helm")))
}

fn cache() -> Cache {
    Cache::new(&format!("helm-{VERSION}"))
}

fn build(cache: &Cache) -> Result<()> {
    let go = go::find().context("there is no Go that is new enough")?;
    cache.fill(|folder, log| {
        let mut command = go.command();
        command
            .current_dir(folder)
            .env("CGO_ENABLED", "0")
            .env("GOBIN", folder.join("bin"))
            .args(["install", "-trimpath", "-ldflags=-s -w"])
            .arg(format!("helm.sh/helm/v3/cmd/helm@v{VERSION}"));
        log.exec(&mut command)
    })
}
