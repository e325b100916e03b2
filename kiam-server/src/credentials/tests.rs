//! The store under a simulated clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiam_common::role::RoleArn;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::*;
use crate::clock::Clock;
use crate::testing::{HOUR, PLENTY, TestClock, TestIssuer, store};

const MINUTE: Duration = Duration::from_secs(60);

fn identity(name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{name}")).unwrap(),
        session_name: "kiam-kiam".to_owned(),
        external_id: None,
        duration: HOUR,
        tags: Vec::new(),
        source_identity: None,
    })
}

/// Waits, as a session does, until the entry has at least this version.
async fn outcome(lease: &Lease, signal: &Notify, version: u64) -> Snapshot {
    loop {
        let snapshot = lease.snapshot();
        if snapshot.version >= version {
            return snapshot;
        }
        signal.notified().await;
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_leases_share_one_call_that_outlives_the_first_lease() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    issuer.behave(Duration::from_secs(1), Ok(HOUR));
    let store = store(&issuer, &clock, PLENTY);
    let signal = Arc::new(Notify::new());
    let first = store.lease(&identity("a"), Arc::clone(&signal));
    sleep(Duration::from_millis(500)).await;
    let others: Vec<_> = (0..50)
        .map(|_| store.lease(&identity("a"), Arc::clone(&signal)))
        .collect();
    drop(first);
    let snapshot = outcome(&others[0], &signal, 1).await;
    assert_eq!(snapshot.credentials.unwrap().access_key_id, "ASIA1/a");
    assert_eq!((issuer.calls(), store.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn credentials_always_have_half_an_hour_left() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = store(&issuer, &clock, PLENTY);
    let signal = Arc::new(Notify::new());
    let lease = store.lease(&identity("a"), Arc::clone(&signal));
    outcome(&lease, &signal, 1).await;
    for _ in 0..24 * 60 {
        sleep(MINUTE).await;
        let credentials = lease.snapshot().credentials.unwrap();
        assert!(
            credentials.remaining(clock.now()) >= 29 * MINUTE,
            "at {:?}",
            clock.now()
        );
    }
    assert!(
        (48..=54).contains(&issuer.calls()),
        "{} calls a day",
        issuer.calls()
    );
}

#[tokio::test(start_paused = true)]
async fn while_sts_fails_valid_credentials_stay_and_calls_are_few() {
    for (kind, allowed) in [
        (IssueErrorKind::Throttled, 5..60),
        (IssueErrorKind::AccessDenied, 5..30),
        (IssueErrorKind::Rejected, 5..30),
        (IssueErrorKind::ServerCredentials, 20..100),
        (IssueErrorKind::Network, 60..200),
        (IssueErrorKind::Fault, 60..200),
    ] {
        let clock = TestClock::new();
        let issuer = TestIssuer::new(&clock);
        let store = store(&issuer, &clock, PLENTY);
        let signal = Arc::new(Notify::new());
        let lease = store.lease(&identity("a"), Arc::clone(&signal));
        let good = outcome(&lease, &signal, 1).await.credentials.unwrap();
        sleep(20 * MINUTE).await;
        issuer.behave(Duration::ZERO, Err(kind));
        sleep(40 * MINUTE).await;
        let snapshot = lease.snapshot();
        assert_eq!(snapshot.credentials, Some(good), "{kind}");
        assert_eq!(snapshot.failure.unwrap().error.kind, kind);
        let before = issuer.calls();
        sleep(HOUR).await;
        let calls = issuer.calls() - before;
        assert!(allowed.contains(&calls), "{kind}: {calls} calls in an hour");
        // Once STS is back there are new credentials within the longest wait.
        issuer.behave(Duration::ZERO, Ok(HOUR));
        sleep(5 * MINUTE).await;
        let snapshot = lease.snapshot();
        assert!(snapshot.failure.is_none(), "{kind}");
        assert!(
            snapshot.credentials.unwrap().remaining(clock.now()) > 50 * MINUTE,
            "{kind}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_times_out_as_a_failure() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    issuer.behave(24 * HOUR, Ok(HOUR));
    let store = store(&issuer, &clock, PLENTY);
    let signal = Arc::new(Notify::new());
    let began = Instant::now();
    let lease = store.lease(&identity("a"), Arc::clone(&signal));
    let failure = outcome(&lease, &signal, 1).await.failure.unwrap();
    assert!(
        failure.error.message.contains("did not respond"),
        "{failure:?}"
    );
    assert!(began.elapsed() < MINUTE);
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_do_not_replace_valid_ones() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = store(&issuer, &clock, PLENTY);
    let signal = Arc::new(Notify::new());
    let lease = store.lease(&identity("a"), Arc::clone(&signal));
    let good = outcome(&lease, &signal, 1).await.credentials;
    issuer.behave(Duration::ZERO, Ok(Duration::ZERO));
    sleep(31 * MINUTE).await;
    let snapshot = lease.snapshot();
    assert_eq!(snapshot.credentials, good);
    assert!(snapshot.failure.unwrap().error.message.contains("clock"));
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_clock_does_not_delay_renewals() {
    for (step, wait) in [(3600, 2 * MINUTE), (-3600, 31 * MINUTE)] {
        let clock = TestClock::new();
        let issuer = TestIssuer::new(&clock);
        let store = store(&issuer, &clock, PLENTY);
        let signal = Arc::new(Notify::new());
        let lease = store.lease(&identity("a"), Arc::clone(&signal));
        outcome(&lease, &signal, 1).await;
        clock.step(step);
        sleep(wait).await;
        assert!(issuer.calls() >= 2, "after a step of {step} s");
    }
}

#[tokio::test(start_paused = true)]
async fn identities_without_readers_are_dropped_and_not_renewed() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = store(&issuer, &clock, PLENTY);
    let signal = Arc::new(Notify::new());
    let lease = store.lease(&identity("a"), Arc::clone(&signal));
    outcome(&lease, &signal, 1).await;
    drop(lease);
    sleep(MINUTE / 2).await;
    // A reader that comes back soon finds the entry.
    let lease = store.lease(&identity("a"), Arc::clone(&signal));
    assert!(lease.snapshot().credentials.is_some());
    sleep(5 * MINUTE).await;
    assert_eq!(store.len(), 1);
    drop(lease);
    sleep(2 * MINUTE).await;
    assert!(store.is_empty());
    sleep(2 * HOUR).await;
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_for_ten_thousand_identities_respect_the_limits() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    issuer.behave(Duration::from_millis(100), Ok(HOUR));
    let limits = Limits {
        concurrency: 16,
        per_second: 100.0,
    };
    let store = store(&issuer, &clock, limits);
    let signal = Arc::new(Notify::new());
    let leases: Vec<_> = (0..10_000)
        .map(|n| store.lease(&identity(&format!("r{n}")), Arc::clone(&signal)))
        .collect();
    sleep(2 * MINUTE).await;
    assert_eq!(issuer.calls(), 10_000);
    assert!(issuer.max_in_flight() <= 16);
    let times = issuer.times();
    for window in times.windows(101) {
        let span = window[100] - window[0];
        assert!(
            span >= Duration::from_millis(900),
            "100 calls within {span:?}"
        );
    }
    let now: SystemTime = clock.now();
    for lease in &leases {
        assert!(lease.snapshot().credentials.unwrap().remaining(now) > 50 * MINUTE);
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_report_the_oldest_credentials_and_the_first_to_expire() {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = Arc::new(store(&issuer, &clock, PLENTY));
    let registry = kiam_common::metrics::Registry::new();
    CredentialAges::register(&registry, Arc::clone(&store), Arc::new(clock.clone())).unwrap();
    let read = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name)?;
        Some(family.get_metric()[0].get_gauge().get_value().round())
    };
    let (age, left) = (
        "kiam_sts_credentials_oldest_age_seconds",
        "kiam_sts_credentials_least_remaining_seconds",
    );
    assert_eq!((read(age), read(left)), (None, None));
    assert_eq!(read("kiam_sts_identities_failing"), Some(0.0));
    let signal = Arc::new(Notify::new());
    let first = store.lease(&identity("a"), Arc::clone(&signal));
    outcome(&first, &signal, 1).await;
    sleep(MINUTE).await;
    let second = store.lease(&identity("b"), Arc::clone(&signal));
    outcome(&second, &signal, 1).await;
    assert_eq!((read(age), read(left)), (Some(60.0), Some(3540.0)));
    issuer.behave(Duration::ZERO, Err(IssueErrorKind::Network));
    sleep(2 * HOUR).await;
    assert_eq!(read("kiam_sts_identities_failing"), Some(2.0));
    assert!(read(left).unwrap() < -3000.0);
}
