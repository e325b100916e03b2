//! Before the agent says that it is ready it connects to the metadata service itself, as a pod does.
//!
//! Its own pod is in the cgroup that the programs are attached to. For a moment they are told to treat
//! that pod as any other with a role; then a connection to 169.254.169.254 has to come to this very
//! process, and the kernel has to say that it is the agent's own pod's. That shows what no look at
//! links and maps does: that nothing rewrites before the programs, that they send to where the agent
//! listens, and that their notes are read and understood.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::MapError;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::caller::{Identify, PodRef, PodUid, Refusal};
use crate::kernel::HostPods;

/// Where pods ask.
const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);
/// How long a try may take, in milliseconds. The first may still go to an agent that is being replaced.
const LIMITS: [u64; 6] = [50, 100, 200, 400, 800, 1600];

/// Why the agent's own connection shows that pods would not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfCheckError {
    /// The agent's pod is not among those that are redirected.
    #[error(
        "the agent's own pod, {own}, has no cgroup below --pods-cgroup: either that is not the cgroup of this node's pods, or --pod-uid (POD_UID) is not the agent's pod's"
    )]
    NoCgroup {
        /// `--pod-uid`
        own: String,
    },
    /// The programs cannot be told of it.
    #[error("cannot tell the kernel programs of the agent's own pod: {0}")]
    Lend(#[from] MapError),
    /// It was refused.
    #[error("a connection of the agent's own to {}:{} failed: {source}", SERVICE.0, SERVICE.1)]
    Connect {
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not come here.
    #[error(
        "a connection of the agent's own to {}:{} did not come here: something redirects it before kiam's programs do, or they are not where pods connect; `kiam-agent doctor` names other programs and rules",
        SERVICE.0, SERVICE.1
    )]
    Elsewhere,
    /// It came, and nobody knows whose it is.
    #[error("a connection of the agent's own came here, but not as a pod's: {0}")]
    Unattested(Refusal),
    /// It came, and counts as another's.
    #[error(
        "a connection of the agent's own came here, but as that of pod {who}, and not of {own}: is --pod-uid (POD_UID) the agent's pod's?"
    )]
    Other {
        /// For whose it was taken.
        who: PodRef,
        /// `--pod-uid`
        own: String,
    },
}

/// A connection that is on its way, by its own end; and who awaits what it is taken for. Nobody else can
/// have that end meanwhile: it is an address of the node's, and its port is taken.
type Expected = Option<(SocketAddr, oneshot::Sender<Result<PodRef, Refusal>>)>;

/// Tells who is calling, and the self-check of its own connection.
#[derive(Debug)]
pub struct Watched<I> {
    inner: I,
    expected: Arc<Mutex<Expected>>,
}

impl<I: Identify> Identify for Watched<I> {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal> {
        let who = self.inner.identify(peer);
        let mut expected = lock(&self.expected);
        if expected.as_ref().is_some_and(|(own, _)| {
            own.ip() == peer.ip().to_canonical() && own.port() == peer.port()
        }) && let Some((_, tell)) = expected.take()
        {
            // Who awaited it has given up by now, if there is nobody.
            drop(tell.send(who.clone()));
        }
        who
    }

    fn none_waits(&self, since: Instant) {
        self.inner.none_waits(since);
    }
}

/// The check, to be made once when the agent has taken its port.
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
    /// Of the pod `own`, whose agent listens at `agent`; and what tells callers apart from now on.
    pub fn new<I: Identify>(
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

    /// Makes it.
    ///
    /// # Errors
    /// When a pod's connection would not be served.
    pub async fn run(self) -> Result<(), SelfCheckError> {
        let own = || self.own.as_str().to_owned();
        let cgroup = self.host_pods.cgroup_of(&self.own);
        let cgroup = cgroup.ok_or_else(|| SelfCheckError::NoCgroup { own: own() })?;
        // As long as this is held, the agent's own pod is like any other.
        let _lent = self.host_pods.lend(cgroup).await?;
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
            Err(refusal) => Err(SelfCheckError::Unattested(refusal)),
        }
    }

    /// One connection; what it was taken for, if it came.
    async fn connect(&self, limit: Duration) -> Result<Result<PodRef, Refusal>, SelfCheckError> {
        let failed = |source| SelfCheckError::Connect { source };
        let socket = TcpSocket::new_v4().map_err(failed)?;
        socket.bind((self.agent, 0).into()).map_err(failed)?;
        let own = socket.local_addr().map_err(failed)?;
        let (tell, told) = oneshot::channel();
        *lock(&self.expected) = Some((own, tell));
        let taken = tokio::time::timeout(limit, async {
            let stream = socket.connect(SERVICE.into()).await.map_err(failed)?;
            let who = told.await.map_err(|_given_up| SelfCheckError::Elsewhere)?;
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
        fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal> {
            match peer.port() {
                4001 => Err(Refusal::Unattested),
                _ => Ok(PodRef::Uid(PodUid::new("somebody"))),
            }
        }
    }

    #[test]
    fn no_other_s_connection_is_taken_for_the_agent_s_own() {
        let expected = Arc::<Mutex<Expected>>::default();
        let watched = Watched {
            inner: Anyone,
            expected: Arc::clone(&expected),
        };
        let identify = |peer: &str| watched.identify(peer.parse().unwrap());
        let (tell, mut told) = oneshot::channel();
        *lock(&expected) = Some(("10.0.0.1:4000".parse().unwrap(), tell));
        // A pod may choose its port, and not its address.
        for other in ["10.0.0.2:4000", "10.0.0.1:4001", "[fd00::1]:4000"] {
            drop(identify(other));
            assert!(told.try_recv().is_err(), "{other}");
        }
        // As a listener of the IPv6 family shows it.
        let own = identify("[::ffff:10.0.0.1]:4000");
        assert_eq!(told.try_recv(), Ok(own));
        assert!(lock(&expected).is_none(), "it is expected once");
    }
}
