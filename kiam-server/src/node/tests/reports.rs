//! The reports of the sessions of a node, and their order.

use tokio_util::sync::CancellationToken;

use super::super::session::{Message, Sender};
use super::*;
use crate::credentials::{IssueErrorKind, Store};
use crate::report::{Action, Notice, Record, Records, ReportMetrics, Reports};

struct Fixture {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    issuer: TestIssuer,
    reports: Reports,
    records: Records,
    notices: mpsc::Receiver<Notice>,
}

/// A stream that receives messages.
struct Stream {
    session: Session,
    signal: Arc<Notify>,
    to: Sender,
    from: mpsc::Receiver<Message>,
    _subscription: crate::cluster::Subscription,
}

impl Fixture {
    fn new() -> Self {
        let (cluster, clock) = (Arc::new(Cluster::new()), TestClock::new());
        let issuer = TestIssuer::new(&clock);
        let metrics = ReportMetrics::new(&kiam_common::metrics::Registry::new()).unwrap();
        let (reports, records) =
            Reports::off().with_audit(Arc::clone(&cluster), Arc::new(clock.clone()), &metrics);
        let (reports, notices) = reports.with_events(Arc::new(clock.clone()), &metrics);
        Self {
            store: Arc::new(store(&issuer, &clock, PLENTY)),
            cluster,
            issuer,
            reports,
            records,
            notices,
        }
    }

    fn stream(&self) -> Stream {
        let signal = Arc::new(Notify::new());
        let subscription = self.cluster.subscribe(NODE, Arc::clone(&signal));
        let session = Session::new(
            NODE.into(),
            Arc::clone(&self.cluster),
            Arc::clone(&self.store),
            Arc::new(settings()),
            Arc::clone(&signal),
        )
        .with_reports(&self.reports);
        signal.notify_one();
        let (to, from) = mpsc::channel(1000);
        Stream {
            session,
            signal,
            to,
            from,
            _subscription: subscription,
        }
    }

    fn change(&self, changes: &[Change]) {
        for change in changes {
            apply(&self.cluster, &self.issuer, change);
        }
    }

    fn taken(&mut self) -> Vec<Record> {
        std::iter::from_fn(|| self.records.try_recv().ok()).collect()
    }

    /// Returns a summary of the records, ordered by pod, and by time for each pod.
    fn recorded(&mut self) -> Vec<String> {
        let mut records = self.taken();
        records.sort_by(|a, b| a.pod.name.cmp(&b.pod.name));
        let short = |record: &Record| {
            let role = record.role.rsplit('/').next().unwrap();
            format!("{:?} {} {role}", record.action, record.pod.name)
        };
        records.iter().map(short).collect()
    }

    fn noticed(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.notices.try_recv().ok())
            .map(|notice| format!("{} {}", notice.pod.name, notice.reason.as_str()))
            .collect()
    }
}

impl Stream {
    async fn listen(&mut self) {
        while tokio::time::timeout(Duration::from_secs(2), self.signal.notified())
            .await
            .is_ok()
        {
            self.session.send_changes(&self.to).await.unwrap();
        }
        while self.from.try_recv().is_ok() {}
    }
}

fn pod_with(number: u8, role: u8) -> Change {
    Change::Pod {
        number,
        on_node: true,
        role: Some(role),
    }
}

#[tokio::test(start_paused = true)]
async fn each_grant_refusal_and_revocation_is_recorded_once_and_in_order() {
    let mut fixture = Fixture::new();
    fixture.change(&[Change::Namespace(Some(1)), pod_with(0, 1), pod_with(1, 2)]);
    let mut stream = fixture.stream();
    stream.listen().await;
    let records = fixture.taken();
    let [refusal, grant] = records.as_slice() else {
        panic!("{records:?}");
    };
    assert_eq!(refusal.action, Action::Refusal);
    assert_eq!(refusal.role, "r2");
    assert!(refusal.reason.as_ref().unwrap().contains("namespace web"));
    assert_eq!(refusal.access_key_id, None);
    assert_eq!(grant.action, Action::Grant);
    assert_eq!(grant.role, format!("{BASE}r1"));
    assert_eq!(grant.access_key_id.as_deref(), Some("ASIA1/r1"));
    assert_eq!(grant.session_name.as_deref(), Some("kiam-kiam"));
    assert_eq!((&*grant.node, &*grant.pod.uid), (NODE, "uid-0"));
    assert_eq!(grant.service_account, "default");
    assert_eq!(fixture.noticed(), ["p1 KiamRoleForbidden"]);

    // Neither a reconnect nor a second stream is a new grant.
    let mut other = fixture.stream();
    other.listen().await;
    drop(stream);
    drop(other);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded(), [""; 0]);
    // A renewal is not a grant.
    tokio::time::sleep(HOUR / 2).await;
    stream.listen().await;
    assert!(fixture.issuer.calls() > 1);
    assert_eq!(fixture.recorded(), [""; 0]);

    fixture.change(&[Change::Namespace(Some(2))]);
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Grant p1 r2"]);
    fixture.change(&[Change::Namespace(Some(0))]);
    stream.listen().await;
    let expected = [
        "Revocation p0 r1",
        "Refusal p0 r1",
        "Revocation p1 r2",
        "Refusal p1 r2",
    ];
    assert_eq!(fixture.recorded(), expected);
    fixture.change(&[pod_with(0, 0)]);
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Grant p0 r0"]);
    fixture.change(&[Change::Namespace(Some(2)), pod_with(0, 2)]);
    stream.listen().await;
    let expected = ["Revocation p0 r0", "Grant p0 r2", "Grant p1 r2"];
    assert_eq!(fixture.recorded(), expected);
    fixture.change(&[Change::DeletePod(0)]);
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Revocation p0 r2"]);
    fixture.change(&[Change::Pod {
        number: 1,
        on_node: true,
        role: None,
    }]);
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Revocation p1 r2"]);
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_of_sts_are_refusals_and_temporary_ones_are_not() {
    let mut fixture = Fixture::new();
    fixture
        .issuer
        .behave(Duration::ZERO, Err(IssueErrorKind::Network));
    fixture.change(&[Change::Namespace(Some(2)), pod_with(0, 1), pod_with(1, 1)]);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded(), [""; 0]);
    let mut noticed = fixture.noticed();
    noticed.sort();
    let failed = ["p0 KiamCredentialError", "p1 KiamCredentialError"];
    assert_eq!(noticed, failed);

    let denied = Err(IssueErrorKind::AccessDenied);
    fixture.issuer.behave(Duration::ZERO, denied);
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    // Recorded once, regardless of the number of attempts and sessions.
    assert_eq!(fixture.recorded(), ["Refusal p0 r1", "Refusal p1 r1"]);
    drop(stream);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded(), [""; 0]);

    fixture.issuer.behave(Duration::ZERO, Ok(HOUR));
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Grant p0 r1", "Grant p1 r1"]);

    // When renewals fail, the grant stays, and there is an Event.
    fixture.noticed();
    fixture.issuer.behave(Duration::ZERO, denied);
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    assert_eq!(fixture.recorded(), [""; 0]);
    assert_eq!(fixture.noticed().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn grants_end_with_their_pods_even_without_a_stream() {
    let mut fixture = Fixture::new();
    let stop = CancellationToken::new();
    let ledger = tokio::spawn(fixture.reports.clone().run_ledger(stop.clone()));
    fixture.change(&[Change::Namespace(Some(2))]);
    fixture.change(&[pod_with(0, 0), pod_with(1, 1), pod_with(2, 2)]);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded().len(), 3);

    drop(stream);
    fixture.change(&[Change::DeletePod(0)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let records = fixture.taken();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].action, Action::Revocation);
    assert!(
        records[0]
            .reason
            .as_ref()
            .unwrap()
            .contains("not connected")
    );

    // Other changes are recorded when the agent reconnects.
    fixture.change(&[pod_with(1, 2)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fixture.recorded(), [""; 0]);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Revocation p1 r1", "Grant p1 r2"]);

    // A deletion between two sessions, before the ledger notices it.
    drop(stream);
    fixture.change(&[Change::DeletePod(1)]);
    let mut stream = fixture.stream();
    stream.listen().await;
    assert_eq!(fixture.recorded(), ["Revocation p1 r2"]);

    drop(stream);
    fixture.change(&[Change::DeletePod(2)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fixture.recorded(), ["Revocation p2 r2"]);
    assert_eq!(fixture.reports.recorded(), (0, 0), "no entries are left");
    stop.cancel();
    ledger.await.unwrap();
}
