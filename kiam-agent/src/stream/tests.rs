//! The client with servers in this process, over sockets and TLS.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kiam_common::api::node::v1::node_service_server::{NodeService, NodeServiceServer};
use kiam_common::api::node::v1::watch_response::Update as Wire;
use kiam_common::flags::TlsFlags;
use kiam_common::metrics::Registry;
use kiam_common::readiness::Readiness;
use kiam_common::tls::{Acceptor, ClientTls, ServerTls, TlsMetrics, TlsSide};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::DropGuard;
use tonic::{Response, Status};

use super::*;
use crate::view::{Outcome, View};

type Sender = mpsc::UnboundedSender<Result<api::WatchResponse, Status>>;
type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    named_authority("ca")
}

fn named_authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for `kiam-server` and for clients, and returns its files.
fn files(folder: &Path, name: &str, issuer: &Authority, trusted: &Authority) -> TlsFlags {
    let mut params = CertificateParams::new(vec!["kiam-server".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    let file = |kind: &str, text: String| {
        let path = folder.join(format!("{name}.{kind}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFlags {
        cert: file("crt", cert.pem()),
        key: file("key", key.serialize_pem()),
        ca: file("ca", trusted.pem()),
    }
}

/// A call, and the sender of its answers.
struct Call {
    node: String,
    authorization: Option<String>,
    answer: Sender,
}

/// A server that passes every call to the test.
struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    refuse: Arc<Mutex<Option<Status>>>,
}

#[tonic::async_trait]
impl NodeService for Scripted {
    type WatchStream = BoxStream<'static, Result<api::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if let Some(status) = self.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let authorization = request
            .metadata()
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        let (answer, messages) = mpsc::unbounded_channel();
        let call = Call {
            node: request.into_inner().node,
            authorization,
            answer,
        };
        self.calls.send(call).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            messages,
        ))))
    }
}

struct Server {
    address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    refuse: Arc<Mutex<Option<Status>>>,
    _running: DropGuard,
}

async fn serve(host: Ipv4Addr, tls: TlsFlags) -> Server {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = TlsMetrics::new(TlsSide::Server, &Registry::new()).unwrap();
    let tls = ServerTls::server(tls, metrics).unwrap();
    let (acceptor, incoming) = Acceptor::new(listener, tls);
    let stop = CancellationToken::new();
    tokio::spawn(acceptor.run(stop.clone()));
    let (calls, called) = mpsc::unbounded_channel();
    let refuse = Arc::new(Mutex::new(None));
    let service = NodeServiceServer::new(Scripted {
        calls,
        refuse: Arc::clone(&refuse),
    });
    let stopped = stop.clone();
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stopped.cancelled())
            .await
    });
    Server {
        address,
        calls: called,
        refuse,
        _running: stop.drop_guard(),
    }
}

impl Server {
    async fn call(&mut self) -> Call {
        patience(self.calls.recv()).await.expect("a call")
    }
}

/// Resolver with addresses that the test sets.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<SocketAddr>>>);

impl Resolve for Names {
    fn resolve(&self) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let found = self.0.lock().unwrap().clone();
        Box::pin(async move {
            if found.is_empty() {
                return Err(io::Error::other("no such host"));
            }
            Ok(found)
        })
    }
}

struct Agent {
    view: View,
    names: Names,
    registry: Registry,
    readiness: Readiness,
    _running: DropGuard,
}

fn agent(tls: TlsFlags, token_file: Option<PathBuf>) -> Agent {
    let registry = Registry::new();
    let names = Names::default();
    let readiness = Readiness::new();
    let (projection, view) = Projection::new();
    let settings = Settings {
        node: "node-1".into(),
        server: "kiam-server:9610".into(),
        token_file,
        guarded: true,
        timeouts: Timeouts {
            retry_first: Duration::from_millis(2),
            retry_limit: Duration::from_millis(20),
            sync: Duration::from_millis(500),
            ..Timeouts::default()
        },
    };
    let metrics = TlsMetrics::new(TlsSide::Client, &registry).unwrap();
    let client = Client::new(
        settings,
        Box::new(names.clone()),
        Box::new(TlsDial {
            name: ServerName::try_from("kiam-server").unwrap(),
            tls: ClientTls::client(tls, metrics).unwrap(),
        }),
        projection,
        StreamMetrics::new(&registry).unwrap(),
        readiness.awaits("snapshot"),
    );
    let stop = CancellationToken::new();
    tokio::spawn(client.run(stop.clone()));
    Agent {
        view,
        names,
        registry,
        readiness,
        _running: stop.drop_guard(),
    }
}

impl Agent {
    fn names(&self, servers: &[SocketAddr]) {
        *self.names.0.lock().unwrap() = servers.to_vec();
    }

    /// Returns the value of a counter, by its name and the value of its label.
    fn count(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family
            .iter()
            .flat_map(|family| family.get_metric())
            .filter(|metric| metric.get_label().iter().any(|pair| pair.value() == label))
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }

    async fn until_ended(&self, reason: &str) {
        let ended = || self.count("kiam_node_stream_ends_total", reason) >= 1.0;
        patience(async {
            while !ended() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    async fn until(&self, condition: impl Fn(&View) -> bool) {
        let mut changes = self.view.changes();
        patience(async {
            while !condition(&self.view) {
                assert!(changes.next().await);
            }
        })
        .await;
    }
}

async fn patience<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(10);
    timeout(limit, what).await.expect("within ten seconds")
}

fn say(answer: &Sender, update: Wire) {
    let update = Some(update);
    answer.send(Ok(api::WatchResponse { update })).unwrap();
}

fn pod(uid: &str, role: &str) -> Wire {
    use api::pod_applied::Outcome;
    Wire::PodApplied(api::PodApplied {
        uid: uid.into(),
        namespace: "default".into(),
        name: uid.into(),
        outcome: Some(Outcome::Granted(api::Granted {
            role_arn: format!("arn:aws:iam::123456789012:role/{role}"),
            identity: 1,
        })),
        ..api::PodApplied::default()
    })
}

fn credentials(identity: u64, key: &str) -> Wire {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let mut issued = api::CredentialsIssued::default();
    issued.identity = identity;
    issued.access_key_id = key.into();
    issued.secret_access_key = "hunter2".into();
    issued.session_token = "hunter3".into();
    issued.expiration = at(4_000_000_000);
    issued.issued = at(1_700_000_000);
    Wire::CredentialsIssued(issued)
}

fn synced() -> Wire {
    Wire::Synced(api::Synced {})
}

fn key(view: &View, uid: &str) -> Option<String> {
    match &view.load().by_uid(uid)?.outcome {
        Outcome::Granted(grant) => Some(grant.issued.as_ref()?.access_key_id().to_owned()),
        _ => None,
    }
}

#[tokio::test]
async fn a_broken_stream_is_replaced_and_the_view_stays() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let server_files = files(folder.path(), "server", &ca, &ca);
    let mut server = serve(Ipv4Addr::LOCALHOST, server_files).await;
    let agent_files = files(folder.path(), "agent", &ca, &ca);
    let agent = agent(agent_files, Some(token.clone()));
    // At first, the name cannot be resolved.
    agent.until_ended("resolve").await;
    agent.names(&[server.address]);

    let call = server.call().await;
    assert_eq!(call.node, "node-1");
    assert_eq!(call.authorization.as_deref(), Some("Bearer first"));
    say(&call.answer, pod("a", "reader"));
    say(&call.answer, pod("gone", "reader"));
    say(&call.answer, credentials(1, "ASIA1"));
    agent
        .until(|view| key(view, "a").as_deref() == Some("ASIA1"))
        .await;
    assert_eq!(agent.readiness.pending(), ["snapshot"]);
    say(&call.answer, synced());
    agent.until(|view| view.load().complete()).await;

    std::fs::write(&token, "second").unwrap();
    let status = Status::unavailable("going away");
    call.answer.send(Err(status)).unwrap();
    let call = server.call().await;
    assert_eq!(call.authorization.as_deref(), Some("Bearer second"));
    assert!(agent.readiness.pending().is_empty());
    assert_eq!(
        agent.count("kiam_node_stream_ends_total", "unavailable"),
        1.0
    );
    assert_eq!(key(&agent.view, "a").as_deref(), Some("ASIA1"));
    assert!(agent.view.load().by_uid("gone").is_some());
    say(&call.answer, pod("a", "reader"));
    say(&call.answer, synced());
    agent
        .until(|view| view.load().by_uid("gone").is_none())
        .await;
    assert_eq!(key(&agent.view, "a").as_deref(), Some("ASIA1"));

    // The server closes the stream for age.
    drop(call);
    let call = server.call().await;
    assert_eq!(agent.count("kiam_node_stream_ends_total", "ended"), 1.0);
    say(&call.answer, pod("a", "writer"));
    agent.until(|view| key(view, "a").is_none()).await;
}

#[tokio::test]
async fn the_next_server_is_used_when_one_fails() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority();
    let server_files = files(folder.path(), "server", &ca, &ca);
    let mut servers = [
        serve(Ipv4Addr::new(127, 0, 0, 1), server_files.clone()).await,
        serve(Ipv4Addr::new(127, 0, 0, 2), server_files).await,
    ];
    // An address without a listener.
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let agent = agent(files(folder.path(), "agent", &ca, &ca), None);
    agent.names(&[dead, servers[0].address, servers[1].address]);
    let [first, second] = &mut servers;
    let (call, at_first) = tokio::select! {
        call = first.call() => (call, true),
        call = second.call() => (call, false),
    };
    assert_eq!(call.authorization, None);
    say(&call.answer, synced());
    agent.until(|view| view.load().complete()).await;
    let (used, other) = if at_first {
        (first, second)
    } else {
        (second, first)
    };
    *used.refuse.lock().unwrap() = Some(Status::unavailable("going away"));
    call.answer
        .send(Err(Status::unavailable("going away")))
        .unwrap();
    other.call().await;
}

#[tokio::test]
async fn every_refusal_is_counted_by_reason_and_retried() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority();
    let server_files = files(folder.path(), "server", &ca, &ca);
    let mut server = serve(Ipv4Addr::LOCALHOST, server_files).await;
    let refuse = |status| *server.refuse.lock().unwrap() = status;
    refuse(Some(Status::unauthenticated("no token")));
    let token = folder.path().join("token");
    let agent = agent(files(folder.path(), "agent", &ca, &ca), Some(token.clone()));
    agent.names(&[server.address]);
    agent.until_ended("token").await;
    std::fs::write(&token, "\n").unwrap();
    let before = agent.count("kiam_node_stream_ends_total", "token");
    patience(async {
        while agent.count("kiam_node_stream_ends_total", "token") < before + 2.0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    std::fs::write(&token, "t").unwrap();
    agent.until_ended("unauthenticated").await;
    refuse(Some(Status::permission_denied("another node")));
    agent.until_ended("permission_denied").await;
    refuse(Some(Status::resource_exhausted("too many streams")));
    agent.until_ended("resource_exhausted").await;
    refuse(Some(Status::unimplemented("what?")));
    agent.until_ended("unimplemented").await;
    refuse(None);
    // A server that does not send its complete state.
    let call = server.call().await;
    say(&call.answer, pod("a", "reader"));
    agent.until_ended("silent").await;
    // A server that sends a message that is too large.
    let call = server.call().await;
    let huge = api::PodRemoved {
        uid: "x".repeat(dial::MAX_MESSAGE_BYTES),
    };
    say(&call.answer, Wire::PodRemoved(huge));
    let call = server.call().await;
    say(&call.answer, synced());
    agent.until(|view| view.load().complete()).await;
}

#[tokio::test]
async fn a_rejected_certificate_is_retried_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (authority(), named_authority("other"));
    let server_files = files(folder.path(), "server", &ca, &ca);
    let server = serve(Ipv4Addr::LOCALHOST, server_files).await;
    // The agent trusts the server, but not the reverse: this shows in the first call or while
    // connecting, which race.
    let agent = agent(files(folder.path(), "agent", &other, &ca), None);
    agent.names(&[server.address]);
    let refused = || {
        let ends = |reason| agent.count("kiam_node_stream_ends_total", reason);
        ends("tls") + ends("connect") + ends("broken")
    };
    patience(async {
        while refused() < 3.0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(agent.count("kiam_node_stream_ends_total", "broken"), 0.0);
}

#[tokio::test]
async fn invalid_messages_are_rejected_and_the_stream_continues() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority();
    let server_files = files(folder.path(), "server", &ca, &ca);
    let mut server = serve(Ipv4Addr::LOCALHOST, server_files).await;
    let agent = agent(files(folder.path(), "agent", &ca, &ca), None);
    agent.names(&[server.address]);
    let call = server.call().await;
    let unknown = api::WatchResponse { update: None };
    call.answer.send(Ok(unknown)).unwrap();
    say(&call.answer, credentials(9, "ASIA9"));
    say(&call.answer, pod("a", "reader"));
    say(&call.answer, credentials(1, "ASIA1"));
    say(&call.answer, pod("b", "reader"));
    say(&call.answer, synced());
    agent.until(|view| view.load().complete()).await;
    assert_eq!(key(&agent.view, "a").as_deref(), Some("ASIA1"));
    let refused = |reason| agent.count("kiam_node_stream_updates_refused_total", reason);
    assert_eq!(refused("malformed"), 1.0);
    assert_eq!(refused("unknown_identity"), 1.0);
    // An invalid message about a pod takes away what it was granted.
    say(&call.answer, pod("a", "no role at all"));
    agent.until(|view| view.load().by_uid("a").is_none()).await;
    assert_eq!(key(&agent.view, "b").as_deref(), Some("ASIA1"));
    assert_eq!(refused("malformed"), 2.0);
}
