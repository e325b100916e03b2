//! The issuer of credentials.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use kiam_common::credentials::SessionCredentials;
use kiam_server::clock::Clock;
use kiam_server::credentials::{IssueError, IssueErrorKind, Issuer};
use kiam_server::identity::Identity;
use tokio::time::Instant;

use crate::{Planted, below};

/// A wall clock that follows tokio's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimClock(Instant);

impl SimClock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.0.elapsed()
    }
}

/// Behavior of STS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StsMode {
    Up,
    Slow,
    Hangs,
    Fails(IssueErrorKind),
}

/// One STS for all replicas.
#[derive(Clone)]
pub(crate) struct Sts(Arc<Inner>);

struct Inner {
    clock: SimClock,
    planted: Planted,
    mode: Mutex<StsMode>,
    calls: AtomicU64,
}

impl Sts {
    pub(crate) fn new(clock: SimClock, planted: Planted) -> Self {
        Self(Arc::new(Inner {
            clock,
            planted,
            mode: Mutex::new(StsMode::Up),
            calls: AtomicU64::new(0),
        }))
    }

    pub(crate) fn set_mode(&self, mode: StsMode) {
        *self.0.mode.lock().unwrap() = mode;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Issuer for Sts {
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError> {
        let number = self.0.calls.fetch_add(1, Ordering::Relaxed);
        let mode = *self.0.mode.lock().unwrap();
        match mode {
            StsMode::Up => tokio::time::sleep(Duration::from_millis(20 + below(80))).await,
            StsMode::Slow => tokio::time::sleep(Duration::from_secs(10)).await,
            StsMode::Hangs => std::future::pending().await,
            StsMode::Fails(kind) => {
                let message = "simulated failure".to_owned();
                return Err(IssueError { kind, message });
            }
        }
        let mut role = identity.role.name().to_owned();
        if self.0.planted == Planted::WrongRole && number % 7 == 6 {
            role.push('x');
        }
        let now = self.0.clock.now();
        Ok(SessionCredentials {
            access_key_id: format!("ASIA/{number}/{role}"),
            secret_access_key: "secret".to_owned().into(),
            session_token: "token".to_owned().into(),
            expiration: now + Duration::from_secs(3600),
            issued: now,
        })
    }
}
