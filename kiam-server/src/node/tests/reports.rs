//! What a node's sessions report, and in which order.

use tokio_util::sync::CancellationToken;

use super::super::session::{Message, Sender};
use super::*;
use crate::credentials::{IssueErrorKind, Store};
use crate::report::{Action, Notice, Record, Records, ReportMetrics, Reports};

struct Stage {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    issuer: TestIssuer,
    reports: Reports,
    records: Records,
    notices: mpsc::Receiver<Notice>,
}

/// A stream, listening.
struct Stream {
    session: Session,
    signal: Arc<Notify>,
    to: Sender,
    from: mpsc::Receiver<Message>,
    _subscription: crate::cluster::Subscription,
}

impl Stage {
    fn new() -> Self {
        let (cluster, clock) = (Arc::new(Cluster::new()), TestClock::new());
        let issuer = TestIssuer::new(&clock);
        let metrics = ReportMetrics::new(&prometheus::Registry::new()).unwrap();
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
        .reporting_to(&self.reports);
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

    /// What was recorded, in short, in its order; where several pods were concerned at once, by
    /// pod.
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
            self.session.tell(&self.to).await.unwrap();
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
    let mut stage = Stage::new();
    stage.change(&[Change::Namespace(Some(1)), pod_with(0, 1), pod_with(1, 2)]);
    let mut stream = stage.stream();
    stream.listen().await;
    let records = stage.taken();
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
    assert_eq!(stage.noticed(), ["p1 KiamRoleForbidden"]);

    // An agent that comes back is granted nothing new, nor is one that is there twice.
    let mut other = stage.stream();
    other.listen().await;
    drop(stream);
    drop(other);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded(), [""; 0]);
    // A renewal is no grant.
    tokio::time::sleep(HOUR / 2).await;
    stream.listen().await;
    assert!(stage.issuer.calls() > 1);
    assert_eq!(stage.recorded(), [""; 0]);

    stage.change(&[Change::Namespace(Some(2))]);
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Grant p1 r2"]);
    stage.change(&[Change::Namespace(Some(0))]);
    stream.listen().await;
    let expected = [
        "Revocation p0 r1",
        "Refusal p0 r1",
        "Revocation p1 r2",
        "Refusal p1 r2",
    ];
    assert_eq!(stage.recorded(), expected);
    stage.change(&[pod_with(0, 0)]);
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Grant p0 r0"]);
    stage.change(&[Change::Namespace(Some(2)), pod_with(0, 2)]);
    stream.listen().await;
    let expected = ["Revocation p0 r0", "Grant p0 r2", "Grant p1 r2"];
    assert_eq!(stage.recorded(), expected);
    stage.change(&[Change::DeletePod(0)]);
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Revocation p0 r2"]);
    stage.change(&[Change::Pod {
        number: 1,
        on_node: true,
        role: None,
    }]);
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Revocation p1 r2"]);
}

#[tokio::test(start_paused = true)]
async fn what_aws_refuses_is_a_refusal_and_what_passes_is_not() {
    let mut stage = Stage::new();
    stage
        .issuer
        .behave(Duration::ZERO, Err(IssueErrorKind::Network));
    stage.change(&[Change::Namespace(Some(2)), pod_with(0, 1), pod_with(1, 1)]);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded(), [""; 0]);
    let mut noticed = stage.noticed();
    noticed.sort();
    let failed = ["p0 KiamCredentialError", "p1 KiamCredentialError"];
    assert_eq!(noticed, failed);

    let denied = Err(IssueErrorKind::AccessDenied);
    stage.issuer.behave(Duration::ZERO, denied);
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    // However often it is tried, and by whichever session.
    assert_eq!(stage.recorded(), ["Refusal p0 r1", "Refusal p1 r1"]);
    drop(stream);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded(), [""; 0]);

    stage.issuer.behave(Duration::ZERO, Ok(HOUR));
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Grant p0 r1", "Grant p1 r1"]);

    // Renewals fail: the grant stays, and the owner hears of it.
    stage.noticed();
    stage.issuer.behave(Duration::ZERO, denied);
    tokio::time::sleep(HOUR).await;
    stream.listen().await;
    assert_eq!(stage.recorded(), [""; 0]);
    assert_eq!(stage.noticed().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn grants_of_a_node_whose_agent_is_away_end_with_their_pods() {
    let mut stage = Stage::new();
    let stop = CancellationToken::new();
    let following = tokio::spawn(stage.reports.clone().follow(stop.clone()));
    stage.change(&[Change::Namespace(Some(2))]);
    stage.change(&[pod_with(0, 0), pod_with(1, 1), pod_with(2, 2)]);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded().len(), 3);

    drop(stream);
    stage.change(&[Change::DeletePod(0)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let records = stage.taken();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].action, Action::Revocation);
    assert!(records[0].reason.as_ref().unwrap().contains("not attached"));

    // What else has changed shows when the agent is back.
    stage.change(&[pod_with(1, 2)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.recorded(), [""; 0]);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Revocation p1 r1", "Grant p1 r2"]);

    // Between two sessions, before the ledger has looked.
    drop(stream);
    stage.change(&[Change::DeletePod(1)]);
    let mut stream = stage.stream();
    stream.listen().await;
    assert_eq!(stage.recorded(), ["Revocation p1 r2"]);

    drop(stream);
    stage.change(&[Change::DeletePod(2)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.recorded(), ["Revocation p2 r2"]);
    assert_eq!(stage.reports.recorded(), (0, 0), "nothing remains");
    stop.cancel();
    following.await.unwrap();
}
