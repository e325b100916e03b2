//! Startup latency: from the API's reply that a pod is bound to its credentials on the node, with
//! many pods starting each second, none of which has an address in the API.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::client;
use super::fixture::{Fixture, NAMESPACES, ROLE};
use pod_client::ask::{Attempt, now};
use testbed::cluster::{PodTemplate, Running};
use testbed::sandbox::Program;

/// Latency of STS for each role; each pod has a role of its own.
const STS_LATENCY: Duration = Duration::from_millis(50);
/// No container starts earlier: its sandbox is made, and its image unpacked, before that.
const CONTAINER_START_MS: u64 = 500;
const LIMIT: Duration = Duration::from_secs(30);
/// Time in which the last client stops itself.
const SETTLE: Duration = Duration::from_secs(2);
/// Pods whose namespaces are made at a time.
const AT_ONCE: usize = 4;

/// Measured figures, times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StartupLatency {
    pub(super) pods: usize,
    pub(super) per_second: u32,
    pub(super) p50_ms: u64,
    pub(super) p99_ms: u64,
    pub(super) max_ms: u64,
    /// Pods that had no credentials yet when their container could have started.
    pub(super) waited: usize,
    /// Failed requests between binding and credentials.
    pub(super) failures: usize,
}

impl StartupLatency {
    pub(super) fn line(&self) -> String {
        let Self {
            pods,
            per_second,
            p50_ms,
            p99_ms,
            max_ms,
            waited,
            failures,
        } = self;
        format!(
            "startup latency: {pods} pods, {per_second} a second, from binding to credentials: p50 {p50_ms} ms, \
             p99 {p99_ms} ms, at most {max_ms} ms; {waited} took longer than {CONTAINER_START_MS} ms; \
             {failures} requests failed"
        )
    }
}

/// A pod that is not bound yet, with a client in it that is stopped.
struct Starting {
    which: usize,
    pod: Running,
    program: Program,
}

/// Starts a number of pods at a rate, and measures the time until each has its credentials.
///
/// # Errors
/// Fails when a pod cannot be made, or has no credentials in the end.
pub(super) async fn measure(
    fixture: &mut Fixture,
    pods: usize,
    per_second: u32,
) -> Result<StartupLatency> {
    fixture.sts_behaves(|sts| sts.latency = STS_LATENCY);
    let prepared = (0..pods).map(|number| prepare(fixture, number));
    let mut prepared = futures::stream::iter(prepared).buffered(AT_ONCE);
    let mut starting = Vec::new();
    while let Some(prepared) = prepared.next().await {
        starting.push(prepared?);
    }
    drop(prepared);
    tokio::time::sleep(SETTLE).await;
    let (shared, begin) = (&*fixture, Instant::now());
    let gap = Duration::from_secs(1) / per_second;
    let bound = try_join_all((0u32..).zip(&starting).map(|(at, it)| async move {
        sleep_until(begin + gap * at).await;
        let node = shared.nodes[it.which].name();
        let (namespace, name) = (it.pod.namespace(), it.pod.name());
        shared.objects.bind(namespace, name, node).await?;
        let bound = now();
        it.program.signal(Signal::SIGCONT)?;
        anyhow::Ok(bound)
    }))
    .await?;
    let (mut times, mut failures) = (Vec::new(), 0);
    for (bound, it) in bound.into_iter().zip(&starting) {
        let end = it.program.wait_for("credentials", LIMIT, |line| {
            let attempt: Attempt = serde_json::from_str(line).ok()?;
            failures += usize::from(attempt.key.is_none());
            attempt.key.as_ref().map(|_| attempt.end())
        });
        let end = end.with_context(|| format!("the new pod {}", it.pod.name()))?;
        times.push(end.saturating_sub(bound));
    }
    for Starting {
        which,
        pod,
        program,
    } in starting
    {
        drop(program);
        fixture.nodes[which].kubelet.stop(pod).await?;
    }
    fixture.sts_behaves(|_| ());
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok(StartupLatency {
        pods,
        per_second,
        p50_ms: percentile(50),
        p99_ms: percentile(99),
        max_ms: percentile(100),
        waited: times
            .iter()
            .filter(|took| **took > CONTAINER_START_MS)
            .count(),
        failures,
    })
}

async fn prepare(fixture: &Fixture, number: usize) -> Result<Starting> {
    let name = format!("starting-{number}");
    let template = PodTemplate {
        namespace: NAMESPACES[0],
        name: &name,
        annotations: &[(ROLE, &name)],
        ..PodTemplate::default()
    };
    let object = fixture.objects.pod(&template).await?;
    let which = number % fixture.nodes.len();
    let pod = fixture.nodes[which].kubelet.start(&object).await?;
    let command = client::fast(pod.place(), &["--first", "--interval=20", "--limit=5000"])?;
    let program = Program::start(&name, command)?;
    Ok(Starting {
        which,
        pod,
        program,
    })
}
