//! Requests from places in the sandbox, each sent by a process there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
pub use pod_client::probe::{Answer, METADATA_SERVICE, Outcome, fetch};

use crate::kiam::pod_client;
use crate::sandbox::{self, Place};

/// On top of the request's own limit: to start a process on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Sends requests from places in the sandbox.
#[derive(Debug, Clone)]
pub struct Prober {
    program: PathBuf,
}

impl Prober {
    /// With the program that runs in pods.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn new() -> Result<Self> {
        let program = pod_client()?.to_owned();
        Ok(Self { program })
    }

    /// A `GET` request.
    ///
    /// # Errors
    /// When the probe itself fails; not when there is no answer.
    pub fn get(&self, place: &Place, url: &str) -> Result<Outcome> {
        self.send(place, "GET", url, &[])
    }

    /// Any request.
    ///
    /// # Errors
    /// When the probe itself fails; not when there is no answer.
    pub fn send(
        &self,
        place: &Place,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Outcome> {
        let mut command = place.command(&self.program);
        command.args(["probe", "--method", method]);
        for (name, value) in headers {
            command.arg("--header").arg(format!("{name}: {value}"));
        }
        command.arg(url);
        let ended = sandbox::run("the probe", command, START_LIMIT)?;
        ensure!(ended.status.success(), "the probe failed: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).context("the probe's answer cannot be read")
    }
}
