//! Bounds, rates and secrets. `node::tests::reports` tests the records of sessions and their order.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::role::resolve;
use tokio::time::Instant;

use super::audit::Writer;
use super::*;
use crate::credentials::{Failure, IssueError, IssueErrorKind};
use crate::testing::{HOUR, TestClock, pod};

fn metrics() -> ReportMetrics {
    ReportMetrics::new(&Registry::new()).unwrap()
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity {
        role: resolve("arn:aws:iam::123456789012:role/r1", None).unwrap(),
        session_name: "kiam-session".to_owned(),
        external_id: Some("hunter1".into()),
        duration: HOUR,
        tags: Vec::new(),
        source_identity: None,
    })
}

fn credentials(clock: &TestClock) -> SessionCredentials {
    SessionCredentials {
        access_key_id: "ASIA1".to_owned(),
        secret_access_key: "hunter2".to_owned().into(),
        session_token: "hunter3".to_owned().into(),
        expiration: clock.now() + HOUR,
        issued: clock.now(),
    }
}

fn forbidden(reason: &str) -> Outcome {
    Outcome::Forbidden {
        role: "r\"1\n".into(),
        reason: reason.into(),
    }
}

/// A publisher that records notices, and can fail or hang.
#[derive(Clone, Default)]
struct FakePublisher {
    published: Arc<Mutex<Vec<(Instant, Notice)>>>,
    failing: bool,
    hanging: bool,
}

#[async_trait]
impl Publisher for FakePublisher {
    async fn publish(&self, notice: &Notice) -> Result<(), PublishError> {
        if self.hanging {
            std::future::pending::<()>().await;
        }
        let now = Instant::now();
        self.published.lock().unwrap().push((now, notice.clone()));
        if self.failing {
            return Err(PublishError("forbidden".to_owned()));
        }
        Ok(())
    }
}

/// A cluster with a number of pods.
fn pods(count: usize) -> (Arc<Cluster>, Vec<Arc<Pod>>) {
    let cluster = Arc::new(Cluster::new());
    for number in 0..count {
        let (uid, name) = (format!("uid-{number}"), format!("p{number}"));
        cluster.apply(pod(&uid, "web", &name, "node-1").into());
    }
    let pods = (0..count).map(|number| cluster.pod(&format!("uid-{number}")).unwrap());
    let pods = pods.collect();
    (cluster, pods)
}

#[tokio::test(start_paused = true)]
async fn a_broken_role_in_a_thousand_pods_causes_few_events() {
    let (cluster, pods) = pods(1000);
    let (metrics, clock) = (metrics(), TestClock::new());
    let (reports, notices) = Reports::off().with_events(Arc::new(clock), &metrics);
    let node = reports.of_node("node-1".into());
    for pod in &pods {
        node.decided(pod, &forbidden("no"));
    }
    let dropped = 1000 - MAX_NOTICES as u64;
    assert_eq!(metrics.event("dropped").get(), dropped);
    let queued = &pods[..MAX_NOTICES];
    for pod in queued {
        node.decided(pod, &forbidden("no"));
    }
    assert_eq!(metrics.event("suppressed").get(), MAX_NOTICES as u64);

    let (publisher, stop) = (FakePublisher::default(), CancellationToken::new());
    let work = publish(
        notices,
        publisher.clone(),
        cluster,
        metrics.clone(),
        stop.clone(),
    );
    let work = tokio::spawn(work);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let published = std::mem::take(&mut *publisher.published.lock().unwrap());
    assert_eq!(published.len(), MAX_NOTICES);
    let distinct: HashSet<_> = published.iter().map(|(_, n)| n.pod.uid.clone()).collect();
    assert_eq!(distinct.len(), MAX_NOTICES);
    for window in published.windows(11) {
        let took = window[10].0 - window[0].0;
        assert!(took > Duration::from_millis(2900), "10 within {took:?}");
    }
    let note = &published[0].1.note;
    assert_eq!(note, "failed assuming role \"r\\\"1\\n\": no");

    // Dropped notices and other texts are published; a repetition is published after an hour.
    node.decided(&pods[999], &forbidden("no"));
    node.decided(&pods[0], &forbidden("still no"));
    node.decided(&pods[0], &forbidden("no"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(publisher.published.lock().unwrap().len(), 2);
    tokio::time::sleep(HOUR).await;
    node.decided(&pods[0], &forbidden("no"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(publisher.published.lock().unwrap().len(), 3);
    let all = MAX_NOTICES as u64 + 3;
    assert_eq!(metrics.event("published").get(), all);
    stop.cancel();
    work.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_recent_notices_is_bounded() {
    let (_, pods) = pods(1);
    let clock = Arc::new(TestClock::new());
    let (reports, mut notices) = Reports::off().with_events(clock, &metrics());
    let node = reports.of_node("node-1".into());
    for number in 0..40_000 {
        node.decided(&pods[0], &forbidden(&number.to_string()));
        notices.try_recv().unwrap();
    }
    let recent = reports.notices.as_ref().unwrap().recent();
    assert_eq!(recent, 16_384);
}

#[tokio::test(start_paused = true)]
async fn failed_events_are_not_retried_and_hanging_ones_time_out() {
    for (failing, hanging) in [(true, false), (false, true)] {
        let (cluster, pods) = pods(3);
        let metrics = metrics();
        let clock = Arc::new(TestClock::new());
        let (reports, notices) = Reports::off().with_events(clock, &metrics);
        let node = reports.of_node("node-1".into());
        for pod in &pods {
            node.decided(pod, &forbidden("no"));
        }
        cluster.delete(&crate::cluster::object::ObjectKey::Pod("uid-1".into()));
        let publisher = FakePublisher {
            failing,
            hanging,
            ..FakePublisher::default()
        };
        let stop = CancellationToken::new();
        let work = publish(
            notices,
            publisher.clone(),
            cluster,
            metrics.clone(),
            stop.clone(),
        );
        let work = tokio::spawn(work);
        tokio::time::sleep(HOUR).await;
        let tried = if hanging { 0 } else { 2 };
        assert_eq!(publisher.published.lock().unwrap().len(), tried);
        assert_eq!(metrics.event("failed").get(), 2);
        assert_eq!(metrics.event("stale").get(), 1);
        stop.cancel();
        work.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn reports_contain_no_secrets() {
    let (cluster, pods) = pods(2);
    let (metrics, clock) = (metrics(), TestClock::new());
    let (reports, mut records) =
        Reports::off().with_audit(cluster, Arc::new(clock.clone()), &metrics);
    let (reports, mut notices) = reports.with_events(Arc::new(clock.clone()), &metrics);
    let node = reports.of_node("node-1".into());
    let identity = identity();
    let mut snapshot = Snapshot {
        version: 1,
        credentials: Some(Arc::new(credentials(&clock))),
        failure: None,
    };
    node.identity(&pods[0], &identity, &snapshot);
    snapshot.credentials = None;
    snapshot.failure = Some(Arc::new(Failure {
        error: IssueError {
            kind: IssueErrorKind::Rejected,
            message: "ValidationError: Value 'hunter1' at 'externalId' is not valid".to_owned(),
        },
        retry_at: clock.now(),
    }));
    node.identity(&pods[1], &identity, &snapshot);
    node.deleted(&pods[0]);

    let mut lines = String::new();
    let mut actions = Vec::new();
    while let Ok(record) = records.try_recv() {
        actions.push(record.action);
        lines += &serde_json::to_string(&record).unwrap();
    }
    let expected = [Action::Grant, Action::Refusal, Action::Revocation];
    assert_eq!(actions, expected);
    let notice = notices.try_recv().unwrap();
    assert!(notice.note.contains("Value '[redacted]'"), "{notice:?}");
    let all = format!("{lines}{notice:?}{node:?}");
    assert!(all.contains("ASIA1") && !all.contains("hunter"), "{all}");
}

#[tokio::test]
async fn records_are_lines_of_a_file_that_may_be_renamed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.json");
    let (cluster, pods) = pods(2);
    let (metrics, clock) = (metrics(), TestClock::new());
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let (reports, records) = Reports::off().with_audit(cluster, clock, &metrics);
    let log = format!("file:{}", path.display()).parse().unwrap();
    let writer = Writer::open(&log, metrics.clone()).unwrap().unwrap();
    let stop = CancellationToken::new();
    let work = tokio::spawn(writer.run(records, stop.clone()));
    let node = reports.of_node("node-1".into());

    node.decided(&pods[0], &forbidden("no"));
    while metrics.audit("written").get() < 1 {
        tokio::task::yield_now().await;
    }
    let moved = folder.path().join("audit.json.1");
    std::fs::rename(&path, &moved).unwrap();
    // Records that were reported before the stop are written.
    node.decided(&pods[1], &forbidden("no"));
    stop.cancel();
    work.await.unwrap();
    assert_eq!(metrics.audit("written").get(), 2);
    for (path, uid) in [(moved, "uid-0"), (path, "uid-1")] {
        let text = std::fs::read_to_string(path).unwrap();
        let line: serde_json::Value =
            serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(line["action"], "refusal");
        assert_eq!(line["pod"]["uid"], uid);
        assert_eq!(line["pod"]["namespace"], "web");
        assert_eq!(line["role"], "r\"1\n");
        assert!(
            line["time"].as_str().unwrap().starts_with("2027-01-15T08:"),
            "{line}"
        );
        assert_eq!(line.get("access_key_id"), None);
    }
    let nowhere: AuditLog = "file:/nowhere/audit.json".parse().unwrap();
    let error = Writer::open(&nowhere, metrics).unwrap_err().to_string();
    assert!(error.contains("/nowhere/audit.json"), "{error}");
}

#[tokio::test]
async fn a_blocked_log_blocks_no_session_and_failures_are_counted() {
    let (cluster, pods) = pods(MAX_RECORDS + 1000);
    let (metrics, clock) = (metrics(), TestClock::new());
    let (reports, records) = Reports::off().with_audit(cluster, Arc::new(clock), &metrics);
    let (go, gate) = std::sync::mpsc::channel::<()>();
    // Blocks until the gate opens, then fails once.
    let mut first = true;
    let writer = Writer::to(metrics.clone(), move |_lines| {
        let _ = gate.recv();
        if std::mem::take(&mut first) {
            return Err(io::Error::other("full"));
        }
        Ok(())
    });
    let stop = CancellationToken::new();
    let work = tokio::spawn(writer.unwrap().run(records, stop.clone()));
    let node = reports.of_node("node-1".into());
    // The only thread of the test: it would hang if this waited for the log.
    for pod in &pods {
        node.decided(pod, &forbidden("no"));
    }
    let dropped = metrics.audit("dropped").get();
    assert_eq!(dropped, 1000);
    drop(go);
    stop.cancel();
    work.await.unwrap();
    let (written, failed) = (
        metrics.audit("written").get(),
        metrics.audit("failed").get(),
    );
    assert!(failed > 0 && failed <= 256, "{failed}");
    assert_eq!(written + failed + dropped, pods.len() as u64);
}

#[tokio::test]
async fn a_panic_of_the_writer_ends_its_task() {
    let (cluster, pods) = pods(1);
    let (metrics, clock) = (metrics(), TestClock::new());
    let (reports, records) = Reports::off().with_audit(cluster, Arc::new(clock), &metrics);
    let writer = Writer::to(metrics, |_lines| panic!("test panic")).unwrap();
    let work = tokio::spawn(writer.run(records, CancellationToken::new()));
    let node = reports.of_node("node-1".into());
    node.decided(&pods[0], &forbidden("no"));
    work.await.unwrap();
}
