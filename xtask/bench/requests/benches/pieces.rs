//! Microbenchmarks of the inner pieces. `cargo bench -p kiam-bench` runs all of them; with a word
//! after `--`, those whose names contain it.
//!
//! Times are of one machine and one moment: for comparing before and after. The cost of a whole
//! request is counted in instructions (`cargo xtask instructions`), which CI compares with a
//! budget.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use divan::{Bencher, black_box};
use kiam_agent::metadata::path;
use kiam_agent::view::{self, GrantedRole, Outcome, PodFacts, Projection, Update};
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::{BaseArn, RoleArn, resolve};
use kiam_server::clock::SystemClock;
use kiam_server::cluster::object::{Annotations, Namespace, Object, Pod};
use kiam_server::cluster::{Cluster, PodContext};
use kiam_server::credentials::{ExpiryContract, IssueError, Issuer, Limits, Store, StoreMetrics};
use kiam_server::identity::Identity;
use kiam_server::node::{Message, Session};
use kiam_server::permitted::{Anchoring, Permitted};
use kiam_server::policy::{SessionSettings, Settings, decide};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};

const HOUR: Duration = Duration::from_secs(3600);
const BASE: &str = "arn:aws:iam::123456789012:role/";
const NODE: &str = "node-1";
/// Length of AWS's session tokens.
const TOKEN_CHARACTERS: usize = 800;
/// Pods of a node: a small one, the kubelet's default limit, and the largest that clouds run.
const PODS: [usize; 3] = [10, 110, 500];

fn main() {
    divan::main();
}

fn base() -> BaseArn {
    BaseArn::parse(BASE).expect("it is an ARN")
}

fn settings() -> Settings {
    Settings {
        base_arn: Some(base()),
        session: SessionSettings {
            name: "kiam".to_owned(),
            duration: HOUR,
            longest: HOUR,
            ..SessionSettings::default()
        },
    }
}

fn pod(number: usize, role: &str) -> Pod {
    Pod {
        uid: format!("6fa1c3b2-8d5e-4a7f-9c01-{number:012x}").into(),
        namespace: "team-a".into(),
        name: format!("worker-5d8f7c9b4-{number:05}").into(),
        created: 0,
        node: Some(NODE.into()),
        service_account: "worker".into(),
        addresses: Box::new([IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))]),
        host_network: false,
        static_hash: None,
        annotations: Annotations {
            role: Some(role.into()),
            ..Annotations::default()
        }
        .boxed(),
    }
}

fn namespace(expression: &str) -> Namespace {
    Namespace {
        name: "team-a".into(),
        permitted: Permitted::compile(Some(expression), Anchoring::Whole),
    }
}

fn credentials() -> SessionCredentials {
    let issued = SystemTime::now();
    SessionCredentials {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: "x".repeat(40).into(),
        session_token: "x".repeat(TOKEN_CHARACTERS).into(),
        expiration: issued + HOUR,
        issued,
    }
}

/// Resolves an annotation, in any spelling, to an ARN.
#[divan::bench(args = ["reader", "/team-a/reader", "arn:aws:iam::123456789012:role/team-a/reader"])]
fn arn_resolution(bencher: Bencher<'_, '_>, spelling: &str) {
    let base = base();
    bencher.bench(|| resolve(black_box(spelling), Some(&base)));
}

/// Decides whether a pod may have its role, with expressions as in real clusters.
#[divan::bench(args = [".*", "arn:aws:iam::123456789012:role/team-a-.*", "(.*/)?(reader|writer|a-reader|b-writer)"])]
fn policy_decision(bencher: Bencher<'_, '_>, expression: &str) {
    let member = PodContext {
        pod: Arc::new(pod(0, "a-reader")),
        namespace: Some(Arc::new(namespace(expression))),
        service_account: None,
    };
    let settings = settings();
    bencher.bench(|| decide(black_box(&member), &settings));
}

/// A namespace's expression, when its annotation changes.
#[divan::bench]
fn expression_compiled(bencher: Bencher<'_, '_>) {
    bencher.bench(|| namespace(black_box("arn:aws:iam::123456789012:role/team-a-.*")));
}

/// The documents that pods read, written once when credentials arrive.
#[divan::bench]
fn credentials_written(bencher: Bencher<'_, '_>) {
    let role = RoleArn::parse("arn:aws:iam::123456789012:role/a-reader").expect("it is an ARN");
    let credentials = credentials();
    bencher.bench(|| view::Issued::new(black_box(&credentials), &role));
}

/// Parsing of a path.
#[divan::bench(args = [
    "/latest/meta-data/iam/security-credentials/a-reader",
    "//latest/./meta-data/iam/security-credentials/a%2Dreader/",
    "/latest/dynamic/instance-identity/document",
])]
fn route_match(bencher: Bencher<'_, '_>, asked: &str) {
    bencher.bench(|| {
        let canonical = path::canonical(black_box(asked)).expect("it is a path");
        black_box(path::route(&canonical));
    });
}

struct Fixed;

#[async_trait]
impl Issuer for Fixed {
    async fn issue(&self, _identity: &Identity) -> Result<SessionCredentials, IssueError> {
        Ok(credentials())
    }
}

/// A node's session that has sent all of its pods.
struct Stream {
    runtime: Runtime,
    cluster: Arc<Cluster>,
    session: Session,
    to: mpsc::Sender<Message>,
    from: mpsc::Receiver<Message>,
}

impl Stream {
    fn of(pods: usize) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs little");
        let context = runtime.enter();
        let cluster = Arc::new(Cluster::new());
        cluster.apply(namespace(".*").into());
        for number in 0..pods {
            cluster.apply(pod(number, "a-reader").into());
        }
        let contract = ExpiryContract::new(HOUR, HOUR / 2).expect("it is AWS's own default");
        let limits = Limits {
            concurrency: 10,
            per_second: 100.0,
        };
        let metrics = StoreMetrics::new(&Registry::new()).expect("they are registered once");
        let store = Store::new(
            Arc::new(Fixed),
            Arc::new(SystemClock),
            || 0.5,
            contract,
            limits,
            metrics,
        );
        let session = Session::new(
            NODE.into(),
            Arc::clone(&cluster),
            Arc::new(store),
            Arc::new(settings()),
            Arc::new(Notify::new()),
        );
        drop(context);
        // Large enough for all updates: the reader is in this thread, too.
        let (to, from) = mpsc::channel(2 * pods + 8);
        let mut stream = Self {
            runtime,
            cluster,
            session,
            to,
            from,
        };
        stream.send_changes();
        stream
    }

    fn send_changes(&mut self) {
        let sent = self.runtime.block_on(self.session.send_changes(&self.to));
        sent.expect("the reader is here");
        while self.from.try_recv().is_ok() {}
    }
}

/// The server's side of the stream: one pod of a node has changed, and the update is sent.
#[divan::bench(args = PODS)]
fn stream_diff(bencher: Bencher<'_, '_>, pods: usize) {
    let mut stream = Stream::of(pods);
    let mut roles = ["b-writer", "a-reader"].into_iter().cycle();
    bencher.bench_local(|| {
        let role = roles.next().expect("it never ends");
        stream.cluster.apply(Object::Pod(pod(0, role)));
        stream.send_changes();
    });
}

/// The agent's side: a change arrives, and requests see it.
#[divan::bench(args = PODS)]
fn stream_apply(bencher: Bencher<'_, '_>, pods: usize) {
    let applied = |number: usize| {
        let facts = PodFacts {
            uid: PodUid::from(format!("6fa1c3b2-8d5e-4a7f-9c01-{number:012x}").as_str()),
            namespace: "team-a".into(),
            name: "worker".into(),
            service_account: "worker".into(),
            addresses: Box::new([IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number as u32))]),
            host_network: false,
            static_hash: None,
        };
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/a-reader");
        let role = role.expect("it is an ARN");
        Update::Applied(facts, Outcome::Granted(GrantedRole { role, identity: 1 }))
    };
    let (mut projection, view) = Projection::new();
    projection.begin();
    for number in 0..pods {
        projection.apply(applied(number)).expect("it is in order");
    }
    projection.apply(Update::Synced).expect("it is in order");
    projection.publish();
    bencher.bench_local(|| {
        projection.apply(applied(0)).expect("it is in order");
        projection.publish();
        black_box(view.load());
    });
}
