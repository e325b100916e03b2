//! The cluster as users see it: through kubectl and helm.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::time::Instant;
use toolchain::{kubectl, workspace};

use testbed::cluster::ControlPlane;
use testbed::sandbox::{Finished, Place, Program, Sandbox};
use toolchain::helm;

/// Limit for commands that wait for nothing.
const SHORT: Duration = Duration::from_secs(120);
/// Interval between two checks of a state that cannot be watched.
const LOOK: Duration = Duration::from_secs(3);

/// A user's shell with an administrator's kubeconfig.
#[derive(Debug, Clone)]
pub(super) struct Kubectl {
    place: Place,
    home: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(sandbox: &Sandbox, plane: &ControlPlane) -> Result<Self> {
        let home = sandbox.folder("user")?;
        let kubeconfig = home.join("kubeconfig");
        plane.admin_kubeconfig(&kubeconfig)?;
        Ok(Self {
            place: sandbox.control().clone(),
            home,
            kubeconfig,
        })
    }

    /// The administrator's kubeconfig.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A program of a user's.
    fn command(&self, program: &Path) -> Result<Command> {
        let mut path = vec![kubectl::folder()?, helm::folder()?];
        path.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(Into::into));
        let mut command = self.place.command(program);
        command
            .env_clear()
            .env("PATH", std::env::join_paths(path)?)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .current_dir(workspace());
        Ok(command)
    }

    fn kubectl(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(&kubectl::folder()?.join("kubectl"))?;
        command.args(args);
        Ok(command)
    }

    /// Runs kubectl, which has to succeed, and returns its output.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        self.run_for(args, SHORT)
    }

    /// Like [`Self::run`], with a limit.
    pub(super) fn run_for(&self, args: &[&str], limit: Duration) -> Result<String> {
        let ended = self.try_run(args, limit)?;
        succeeded(&format!("kubectl {}", args.join(" ")), ended)
    }

    /// Runs kubectl, which may fail.
    pub(super) fn try_run(&self, args: &[&str], limit: Duration) -> Result<Finished> {
        testbed::sandbox::run("kubectl", self.kubectl(args)?, limit)
    }

    /// Starts kubectl.
    pub(super) fn start(&self, args: &[&str]) -> Result<Program> {
        Program::start(&format!("kubectl {}", args.join(" ")), self.kubectl(args)?)
    }

    /// Applies manifests.
    pub(super) fn apply(&self, manifests: &str) -> Result<String> {
        let file = self.home.join("manifests.yaml");
        std::fs::write(&file, manifests).context("cannot write manifests")?;
        let file = file.display().to_string();
        self.run(&["apply", "-f", &file])
    }

    /// Runs helm, which has to succeed.
    pub(super) fn helm(&self, args: &[&str], limit: Duration) -> Result<String> {
        let mut command = self.command(&helm::folder()?.join("helm"))?;
        command.args(args);
        let ended = testbed::sandbox::run("helm", command, limit)?;
        succeeded(&format!("helm {}", args.join(" ")), ended)
    }

    /// An object, or `null` if there is none.
    pub(super) fn get(&self, args: &[&str]) -> Result<Value> {
        let args = [&["get", "-o", "json", "--ignore-not-found"], args].concat();
        let text = self.run(&args)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// Waits until an object is as it should be; returns it.
    pub(super) fn wait(
        &self,
        what: &str,
        args: &[&str],
        limit: Duration,
        mut is: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let object = self.get(args)?;
            if is(&object) {
                return Ok(object);
            }
            if Instant::now() > deadline {
                let status = &object["status"];
                bail!("{}: not {what} within {limit:?}: {status}", args.join(" "));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Output of a container.
    pub(super) fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        self.run(&["-n", namespace, "logs", pod, "-c", container])
    }
}

fn succeeded(what: &str, ended: Finished) -> Result<String> {
    ensure!(
        ended.status.success(),
        "{what} ({}): {}{}",
        ended.status,
        ended.stdout,
        ended.stderr
    );
    Ok(ended.stdout)
}
