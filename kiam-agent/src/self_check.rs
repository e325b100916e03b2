//! Self-check: before the agent is ready it connects to the metadata service itself, as a pod does.
//!
//! The agent's pod is in the cgroup that the programs are attached to. For a moment they treat it
//! like another pod with a role; then a connection to 169.254.169.254 must reach this process, and
//! the kernel must attest it as the agent's pod's. This shows more than a look at links and maps:
//! that no other software rewrites the address first, that the programs redirect to where the agent
//! listens, and that attestations are read correctly.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::MapError;
use kiam_common::metadata_address::METADATA_SERVICE;
use kiam_common::pod_uid::PodUid;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::caller::{Identify, PodRef, Unidentified};
use crate::kernel::HostPods;

/// Timeouts of the attempts, in milliseconds. The first may still reach an agent that is replaced.
const LIMITS: [u64; 6] = [50, 100, 200, 400, 800, 1600];

/// Reason why pods would not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SelfCheckError {
    #[error(
        "no cgroup below --pods-cgroup belongs to the agent's own pod {own}; check that --pods-cgroup is the cgroup of this node's pods, and --pod-uid (POD_UID) the UID of the agent's pod"
    )]
    NoCgroup { own: String },
    #[error("cannot redirect the agent's own pod to the agent: {0}")]
    Redirect(#[from] MapError),
    #[error("the agent's own connection to {METADATA_SERVICE} failed: {source}")]
    Connect { source: io::Error },
    #[error(
        "the agent's own connection to {METADATA_SERVICE} did not reach the agent: other software redirects it first, or the kernel programs do not run for pods; `kiam-agent doctor` lists other programs and rules"
    )]
    Elsewhere,
    #[error("the agent's own connection reached the agent, but not as a pod's: {0}")]
    Unidentified(Unidentified),
    #[error(
        "the agent's own connection reached the agent as that of pod {who}, not of {own}; check that --pod-uid (POD_UID) is the UID of the agent's pod"
    )]
    Other { who: PodRef, own: String },
}

/// A connection under way, by its local address, and the receiver of its identification. No other
/// connection can have that address meanwhile: it is the node's, and the port is in use.
type Expected = Option<(SocketAddr, oneshot::Sender<Result<PodRef, Unidentified>>)>;

/// Identification that reports the agent's own connection to the self-check.
#[derive(Debug)]
pub(crate) struct Watched<I> {
    inner: I,
    expected: Arc<Mutex<Expected>>,
}

impl<I: Identify> Identify for Watched<I> {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
        let who = self.inner.identify(peer);
        let mut expected = lock(&self.expected);
        if expected.as_ref().is_some_and(|(own, _)| {
            own.ip() == peer.ip().to_canonical() && own.port() == peer.port()
        }) && let Some((_, sender)) = expected.take()
        {
            // If nothing receives it, the attempt has timed out.
            drop(sender.send(who.clone()));
        }
        who
    }

    fn accept_queue_empty(&self, since: Instant) {
        self.inner.accept_queue_empty(since);
    }
}

/// The check, to run once when the agent listens.
pub struct SelfCheck {
    host_pods: HostPods,
    own: PodUid,
    agent: Ipv4Addr,
    expected: Arc<Mutex<Expected>>,
}

impl fmt::Debug for SelfCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfCheck")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl SelfCheck {
    /// Creates the check for the pod `own`, whose agent listens at `agent`, and the identification
    /// to use from now on.
    pub(crate) fn new<I: Identify>(
        inner: I,
        host_pods: HostPods,
        own: PodUid,
        agent: SocketAddrV4,
    ) -> (Watched<I>, Self) {
        let expected = Arc::<Mutex<Expected>>::default();
        let watched = Watched {
            inner,
            expected: Arc::clone(&expected),
        };
        let check = Self {
            host_pods,
            own,
            agent: *agent.ip(),
            expected,
        };
        (watched, check)
    }

    /// Runs the check.
    pub(crate) async fn run(self) -> Result<(), SelfCheckError> {
        let own = || self.own.as_str().to_owned();
        let cgroup = self.host_pods.cgroup_of(&self.own);
        let cgroup = cgroup.ok_or_else(|| SelfCheckError::NoCgroup { own: own() })?;
        // While this exists, the agent's own pod is treated like any other.
        let _redirect = self.host_pods.redirect_temporarily(cgroup).await?;
        let mut outcome = Err(SelfCheckError::Elsewhere);
        for limit in LIMITS {
            outcome = self.connect(Duration::from_millis(limit)).await;
            if outcome.is_ok() {
                break;
            }
        }
        match outcome? {
            Ok(PodRef::Uid(who) | PodRef::StaticHash(who)) if who == self.own => Ok(()),
            Ok(who) => Err(SelfCheckError::Other { who, own: own() }),
            Err(unidentified) => Err(SelfCheckError::Unidentified(unidentified)),
        }
    }

    /// Connects once, and returns the identification of the connection if it arrived.
    async fn connect(
        &self,
        limit: Duration,
    ) -> Result<Result<PodRef, Unidentified>, SelfCheckError> {
        let failed = |source| SelfCheckError::Connect { source };
        let socket = TcpSocket::new_v4().map_err(failed)?;
        socket.bind((self.agent, 0).into()).map_err(failed)?;
        let own = socket.local_addr().map_err(failed)?;
        let (sender, receiver) = oneshot::channel();
        *lock(&self.expected) = Some((own, sender));
        let taken = tokio::time::timeout(limit, async {
            let stream = socket.connect(METADATA_SERVICE).await.map_err(failed)?;
            let who = receiver
                .await
                .map_err(|_timed_out| SelfCheckError::Elsewhere)?;
            drop(stream);
            Ok(who)
        })
        .await;
        lock(&self.expected).take();
        taken.unwrap_or(Err(SelfCheckError::Elsewhere))
    }
}

fn lock(expected: &Mutex<Expected>) -> MutexGuard<'_, Expected> {
    expected.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Anyone;

    impl Identify for Anyone {
        fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
            match peer.port() {
                4001 => Err(Unidentified::Unattested),
                _ => Ok(PodRef::Uid(PodUid::new("somebody"))),
            }
        }
    }

    #[test]
    fn only_the_agents_own_connection_is_reported() {
        let expected = Arc::<Mutex<Expected>>::default();
        let watched = Watched {
            inner: Anyone,
            expected: Arc::clone(&expected),
        };
        let identify = |peer: &str| watched.identify(peer.parse().unwrap());
        let (sender, mut receiver) = oneshot::channel();
        *lock(&expected) = Some(("10.0.0.1:4000".parse().unwrap(), sender));
        // A pod may choose its port, but not its address.
        for other in ["10.0.0.2:4000", "10.0.0.1:4001", "[fd00::1]:4000"] {
            drop(identify(other));
            assert!(receiver.try_recv().is_err(), "{other}");
        }
        // As a listener of the IPv6 family reports it.
        let own = identify("[::ffff:10.0.0.1]:4000");
        assert_eq!(receiver.try_recv(), Ok(own));
        assert!(lock(&expected).is_none(), "it is expected once");
    }
}
