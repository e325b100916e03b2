//! Requests from inside pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::fixture::Fixture;
use testbed::probe::{Answer, METADATA_SERVICE, Prober};
use testbed::sandbox::Place;
use testbed::sdk::Sdk;

/// Limit for a change to take effect, on a busy machine.
const SEEN_LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(10);

/// The metadata service's answer in a place; with `role` empty, the name of the pod's role.
pub(super) fn ask(place: &Place, role: &str) -> Result<Answer> {
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/{role}");
    Prober::new()?.get(place, &url)?.answer()
}

/// The metadata service answers so in a place. Returns its text.
pub(super) fn answers(place: &Place, role: &str, expected: u16, parts: &[&str]) -> Result<String> {
    let Answer { status, body, .. } = ask(place, role)?;
    // What is not refused may hold credentials.
    let shown = if status == 200 && !role.is_empty() {
        "credentials"
    } else {
        body.trim()
    };
    ensure!(status == expected, "{status} and not {expected}: {shown}");
    for part in parts {
        ensure!(body.contains(part), "no {part:?} in {shown:?}");
    }
    Ok(shown.to_owned())
}

/// There are credentials of this role in a place.
pub(super) fn has(place: &Place, role: &str) -> Result<()> {
    answers(place, role, 200, &["SecretAccessKey"]).map(drop)
}

/// The AWS CLI in a place is this role. Returns the ARN it prints.
pub(super) fn is(fixture: &Fixture, place: &Place, role: &str) -> Result<String> {
    sdk_is(fixture, Sdk::Cli, place, role)
}

/// An SDK in a place is this role. Returns the ARN it prints.
pub(super) fn sdk_is(fixture: &Fixture, sdk: Sdk, place: &Place, role: &str) -> Result<String> {
    let ended = fixture.caller_identity(sdk, place)?;
    let (name, who, stderr) = (sdk.name(), ended.stdout.trim(), ended.stderr.trim());
    ensure!(ended.status.success(), "{name}: {stderr}");
    let own = format!("arn:aws:sts::123456789012:assumed-role/{role}/");
    ensure!(who.starts_with(&own), "{name} is {who}");
    Ok(who.to_owned())
}

/// Retries until success: a change passes through API, server and stream. Returns
/// how long that was.
pub(super) async fn seen<T>(mut check: impl FnMut() -> Result<T>) -> Result<(T, Duration)> {
    let begin = Instant::now();
    loop {
        match check() {
            Ok(found) => return Ok((found, begin.elapsed())),
            Err(error) if begin.elapsed() > SEEN_LIMIT => {
                return Err(error.context(format!("no success within {SEEN_LIMIT:?}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Asks for a pod's credentials again and again, on a thread of its own.
#[derive(Debug)]
pub(super) struct Asking {
    enough: Arc<AtomicBool>,
    asked: JoinHandle<Result<usize>>,
}

impl Asking {
    pub(super) fn begin(place: &Place, role: &str) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (place, role) = (place.clone(), role.to_owned());
        let stop = Arc::clone(&enough);
        let asked = tokio::task::spawn_blocking(move || {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                has(&place, &role)?;
                asked += 1;
            }
            Ok(asked)
        });
        Self { enough, asked }
    }

    /// Number of requests, all of which must have been served.
    pub(super) async fn end(mut self) -> Result<usize> {
        self.enough.store(true, Ordering::Relaxed);
        match (&mut self.asked).await?? {
            0 => bail!("no request was sent"),
            asked => Ok(asked),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}
