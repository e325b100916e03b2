//! kubectl, built once from its Go module into the user's cache.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::go;
use crate::workspace;
use crate::{Cache, Plan, Step, fingerprint};

const GO_MOD: &str = include_str!("../kubectl/go.mod");
const GO_SUM: &str = include_str!("../kubectl/go.sum");

/// Adds missing parts to the plan.
pub fn plan(plan: &mut Plan) {
    let cache = cache();
    if cache.is_complete() {
        return;
    }
    go::plan(plan);
    plan.step(Step {
        what: format!("kubectl, built by Go into {}", cache.path().display()),
        why: "runs the documented commands",
        about: Some(Duration::from_secs(120)),
        run: Box::new(move || {
            let go = go::find().context("there is no Go that is new enough")?;
            cache.fill(|folder, log| {
                let mut command = go.command();
                command
                    .current_dir(workspace().join("xtask/toolchain/kubectl"))
                    .env("CGO_ENABLED", "0")
                    .args([
                        "build",
                        "-mod=readonly",
                        "-trimpath",
                        "-ldflags=-s -w",
                        "-o",
                    ])
                    .arg(folder.join("kubectl"))
                    .arg("k8s.io/kubernetes/cmd/kubectl");
                log.exec(&mut command)
            })
        }),
    });
}

/// The folder that it is in, for `PATH`.
pub fn folder() -> Result<PathBuf> {
    let cache = cache();
    ensure!(cache.is_complete(), "kubectl is not built yet");
    Ok(cache.path().to_owned())
}

fn cache() -> Cache {
    Cache::new(&format!("kubectl-{}", fingerprint(&[GO_MOD, GO_SUM])))
}
