//! Fixtures of several tests: objects, a clock, an issuer.

pub(crate) mod api;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::role::BaseArn;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cluster::object::Pod;
use crate::credentials::{
    ExpiryContract, IssueError, IssueErrorKind, Issuer, Limits, Store, StoreMetrics,
};
use crate::identity::Identity;
use crate::policy::{SessionSettings, Settings};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Settings of most tests: a base ARN, and sessions of one hour.
pub(crate) fn settings() -> Settings {
    Settings {
        base_arn: Some(BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()),
        session: SessionSettings {
            name: "kiam".to_owned(),
            duration: HOUR,
            longest: HOUR,
            ..SessionSettings::default()
        },
    }
}

pub(crate) fn pod(uid: &str, namespace: &str, name: &str, node: &str) -> Pod {
    Pod {
        uid: uid.into(),
        namespace: namespace.into(),
        name: name.into(),
        node: (!node.is_empty()).then(|| node.into()),
        service_account: "default".into(),
        addresses: Box::default(),
        host_network: false,
        static_hash: None,
        created: 0,
        annotations: None,
    }
}

/// A wall clock that follows tokio's clock, which tests pause, and that can be set.
#[derive(Debug, Clone)]
pub(crate) struct TestClock {
    start: Instant,
    /// Seconds from 1970 to `start`.
    offset: Arc<AtomicU64>,
}

impl TestClock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            offset: Arc::new(AtomicU64::new(1_800_000_000)),
        }
    }

    pub(crate) fn step(&self, seconds: i64) {
        self.offset
            .fetch_add(seconds.cast_unsigned(), Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        let offset = Duration::from_secs(self.offset.load(Ordering::Relaxed));
        SystemTime::UNIX_EPOCH + offset + self.start.elapsed()
    }
}

/// An issuer with configurable behavior, which records its calls.
#[derive(Clone)]
pub(crate) struct TestIssuer(Arc<Inner>);

struct Inner {
    clock: TestClock,
    behavior: Mutex<Behavior>,
    calls: Mutex<Vec<(Instant, Identity)>>,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
}

#[derive(Debug, Clone)]
pub(crate) struct Behavior {
    pub(crate) latency: Duration,
    pub(crate) outcome: Result<Duration, IssueErrorKind>,
}

impl TestIssuer {
    pub(crate) fn new(clock: &TestClock) -> Self {
        Self(Arc::new(Inner {
            clock: clock.clone(),
            behavior: Mutex::new(Behavior {
                latency: Duration::ZERO,
                outcome: Ok(HOUR),
            }),
            calls: Mutex::default(),
            in_flight: AtomicU64::new(0),
            max_in_flight: AtomicU64::new(0),
        }))
    }

    pub(crate) fn max_in_flight(&self) -> u64 {
        self.0.max_in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn behave(&self, latency: Duration, outcome: Result<Duration, IssueErrorKind>) {
        *self.0.behavior.lock().unwrap() = Behavior { latency, outcome };
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.lock().unwrap().len()
    }

    pub(crate) fn times(&self) -> Vec<Instant> {
        self.0
            .calls
            .lock()
            .unwrap()
            .iter()
            .map(|(at, _)| *at)
            .collect()
    }
}

#[async_trait]
impl Issuer for TestIssuer {
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError> {
        let number = {
            let mut calls = self.0.calls.lock().unwrap();
            calls.push((Instant::now(), identity.clone()));
            calls.len()
        };
        let now = self.0.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.max_in_flight.fetch_max(now, Ordering::SeqCst);
        let Behavior { latency, outcome } = self.0.behavior.lock().unwrap().clone();
        tokio::time::sleep(latency).await;
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        let life = outcome.map_err(|kind| IssueError {
            kind,
            message: format!("test error: {kind}"),
        })?;
        let now = self.0.clock.now();
        Ok(SessionCredentials {
            access_key_id: format!("ASIA{number}/{}", identity.role.name()),
            secret_access_key: "secret".to_owned().into(),
            session_token: "token".to_owned().into(),
            expiration: now + life,
            issued: now,
        })
    }
}

pub(crate) fn store(issuer: &TestIssuer, clock: &TestClock, limits: Limits) -> Store {
    let (issuer, clock) = (Arc::new(issuer.clone()), Arc::new(clock.clone()));
    let contract = ExpiryContract::new(HOUR, HOUR / 2).unwrap();
    let metrics = StoreMetrics::new(&Registry::new()).unwrap();
    Store::new(issuer, clock, || 0.5, contract, limits, metrics)
}

/// Limits that are never reached.
pub(crate) const PLENTY: Limits = Limits {
    concurrency: 1000,
    per_second: 1e6,
};
