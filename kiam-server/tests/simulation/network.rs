//! The network between the agent and the replicas: addresses that are up or down, and streams that
//! are slow, stuck or cut. Messages of a stream stay in order, as in TCP.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use kiam_agent::stream::{Dial, DialError, Messages, Resolve};
use kiam_common::api::node::v1::node_service_server::NodeService;
use kiam_common::api::node::v1::pod_applied::Outcome;
use kiam_common::api::node::v1::watch_response::Update;
use kiam_common::api::node::v1::{WatchRequest, WatchResponse};
use kiam_common::tls::ConnectError;
use kiam_server::node::Service;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Status};

use crate::{Planted, below};

/// The state of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Fine,
    Slow,
    /// Half-open: messages do not arrive, without an error.
    Stuck,
    /// Open streams break, and new ones fail.
    Cut,
}

#[derive(Clone)]
pub(crate) struct Network(Arc<Inner>);

struct Inner {
    planted: Planted,
    servers: Mutex<BTreeMap<SocketAddr, Arc<Service>>>,
    link: watch::Sender<Link>,
    tally: Mutex<(u64, u64)>,
}

impl Network {
    pub(crate) fn new(planted: Planted) -> Self {
        Self(Arc::new(Inner {
            planted,
            servers: Mutex::default(),
            link: watch::Sender::new(Link::Fine),
            tally: Mutex::default(),
        }))
    }

    pub(crate) fn up(&self, address: SocketAddr, service: Service) {
        self.0
            .servers
            .lock()
            .unwrap()
            .insert(address, Arc::new(service));
    }

    pub(crate) fn down(&self, address: SocketAddr) {
        self.0.servers.lock().unwrap().remove(&address);
    }

    pub(crate) fn link(&self, link: Link) {
        self.0.link.send_replace(link);
    }

    /// Returns the numbers of opened and of cut streams.
    pub(crate) fn tally(&self) -> (u64, u64) {
        *self.0.tally.lock().unwrap()
    }
}

impl Resolve for Network {
    fn resolve(&self) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let all = self.0.servers.lock().unwrap().keys().copied().collect();
        Box::pin(async { Ok(all) })
    }
}

impl Dial for Network {
    fn watch(
        &self,
        address: SocketAddr,
        mut request: Request<WatchRequest>,
    ) -> BoxFuture<'_, Result<Messages, DialError>> {
        Box::pin(async move {
            let refused = |reason: &str| {
                DialError::Connect(ConnectError {
                    address,
                    name: "kiam-server".to_owned(),
                    reason: reason.to_owned(),
                })
            };
            let link = *self.0.link.borrow();
            match link {
                Link::Fine => {}
                Link::Slow => tokio::time::sleep(Duration::from_millis(500)).await,
                // Ends by the timeout of the caller.
                Link::Stuck => std::future::pending().await,
                Link::Cut => return Err(refused("no route")),
            }
            let server = self.0.servers.lock().unwrap().get(&address).cloned();
            let server = server.ok_or_else(|| refused("connection refused"))?;
            let misdelivered = self.0.planted == Planted::Misdelivers && below(10) == 0;
            if misdelivered {
                "node-2".clone_into(&mut request.get_mut().node);
            }
            let answer = server.watch(request).await.map_err(DialError::Status)?;
            self.0.tally.lock().unwrap().0 += 1;
            let (to, from) = mpsc::channel(8);
            tokio::spawn(Arc::clone(&self.0).carry(answer.into_inner().boxed(), to));
            let messages = stream::unfold(from, async |mut from| Some((from.recv().await?, from)));
            Ok(messages.boxed())
        })
    }
}

impl Inner {
    /// Forwards the messages of a stream until one side closes it, or it is cut.
    async fn carry(
        self: Arc<Self>,
        mut messages: Messages,
        to: mpsc::Sender<Result<WatchResponse, Status>>,
    ) {
        let mut link = self.link.subscribe();
        loop {
            let message = tokio::select! {
                biased;
                () = to.closed() => return,
                cut = link.wait_for(|link| *link == Link::Cut) => {
                    drop(cut);
                    self.tally.lock().unwrap().1 += 1;
                    drop(to.try_send(Err(Status::unavailable("connection reset"))));
                    return;
                }
                message = messages.next() => message,
            };
            let Some(message) = message else { return };
            let now = *link.borrow();
            match now {
                Link::Fine => tokio::time::sleep(Duration::from_millis(below(5))).await,
                Link::Slow => tokio::time::sleep(Duration::from_millis(500)).await,
                Link::Stuck => {
                    // Messages in flight wait until the state of the link changes.
                    let waited = tokio::select! {
                        () = to.closed() => return,
                        waited = link.wait_for(|link| *link != Link::Stuck) => waited.is_ok(),
                    };
                    if !waited {
                        return;
                    }
                }
                Link::Cut => continue,
            }
            if self.planted == Planted::LosesRevocations && is_revocation(&message) {
                continue;
            }
            if to.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// Returns whether a message revokes something.
fn is_revocation(message: &Result<WatchResponse, Status>) -> bool {
    let update = message.as_ref().ok().and_then(|m| m.update.as_ref());
    match update {
        Some(Update::PodRemoved(_)) => true,
        Some(Update::PodApplied(pod)) => matches!(pod.outcome, Some(Outcome::Forbidden(_))),
        _ => false,
    }
}
