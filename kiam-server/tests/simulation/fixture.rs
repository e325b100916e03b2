//! The true state, the replicas that watch it, the agent, and the invariants.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiam_agent::stream::{
    Client, Settings as StreamSettings, StreamMetrics as AgentMetrics, Timeouts,
};
use kiam_agent::view::{Outcome as Seen, Projection, View};
use kiam_common::metrics::Registry;
use kiam_common::readiness::Readiness;
use kiam_common::role::BaseArn;
use kiam_server::clock::Clock as _;
use kiam_server::cluster::Cluster;
use kiam_server::cluster::object::{
    Annotations, Kind, Namespace, Object, ObjectKey, Pod, ServiceAccount,
};
use kiam_server::credentials::{ExpiryContract, IssueErrorKind, Limits, Store, StoreMetrics};
use kiam_server::node::proof::NodeProof;
use kiam_server::node::{Service, StreamAge, StreamMetrics};
use kiam_server::permitted::{Anchoring, Permitted};
use kiam_server::policy::{Outcome, SessionSettings, Settings, decide};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::network::{Link, Network};
use crate::sts::{SimClock, Sts, StsMode};
use crate::{Planted, below, chance};

const BASE: &str = "arn:aws:iam::123456789012:role/";
const NODE: &str = "node-1";
const HOUR: Duration = Duration::from_secs(3600);
const REPLICAS: u16 = 3;
/// The maximum delay of a watch while the API is up.
const LAG: Duration = Duration::from_secs(5);
/// The time without faults after which the complete state is checked.
const HEALED: Duration = Duration::from_secs(20 * 60);
/// The minimum remaining lifetime that the expiry contract guarantees while STS is up.
const LEAST_LEFT: Duration = Duration::from_secs(25 * 60);

/// The numbers of events that occurred.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) streams: u64,
    pub(crate) cut: u64,
    pub(crate) restarts: u64,
    pub(crate) sts_calls: u64,
    pub(crate) failed_calls: u64,
    /// Checks in which a pod had its credentials.
    pub(crate) served: u64,
    /// Checks in which a pod had to have kept its credentials.
    pub(crate) kept: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.streams += other.streams;
        self.cut += other.cut;
        self.restarts += other.restarts;
        self.sts_calls += other.sts_calls;
        self.failed_calls += other.failed_calls;
        self.served += other.served;
        self.kept += other.kept;
    }
}

/// An event of a watch.
#[derive(Debug, Clone)]
enum WatchEvent {
    Listed(Kind, Vec<Object>),
    Applied(Object),
    Deleted(ObjectKey),
}

struct Replica {
    address: SocketAddr,
    store: Arc<Store>,
    /// One watch of each kind: events of different kinds have no order.
    feeds: BTreeMap<Kind, mpsc::UnboundedSender<(Instant, WatchEvent)>>,
    _running: DropGuard,
}

/// The state of a pod in the API.
#[derive(Debug, Clone)]
struct ApiPod {
    uid: String,
    node: &'static str,
    role: Option<u64>,
}

pub(crate) struct Fixture {
    clock: SimClock,
    sts: Sts,
    network: Network,
    /// The true state.
    truth: Arc<Cluster>,
    objects: BTreeMap<Kind, BTreeMap<String, Object>>,
    slots: BTreeMap<u64, ApiPod>,
    born: u64,
    replicas: BTreeMap<u16, Replica>,
    api: watch::Sender<bool>,
    api_changed: Instant,
    link: (Link, Instant),
    changed: Instant,
    /// All roles that each pod of this node ever named, by UID. `None` if it named no role.
    named: BTreeMap<String, BTreeSet<Option<u64>>>,
    /// All roles that the service account ever named, and that the namespace ever permitted. Events
    /// of different kinds have no order: while a watch lags, a server may have the old state of one
    /// object and the new state of another.
    of_account: BTreeSet<u64>,
    permitted: BTreeSet<u64>,
    /// The grant and the expiration of the credentials of each pod at the last check.
    had: BTreeMap<String, (String, SystemTime)>,
    view: View,
    agent: Option<DropGuard>,
    tally: Tally,
}

fn settings() -> Settings {
    Settings {
        base_arn: Some(BaseArn::parse(BASE).unwrap()),
        session: SessionSettings {
            name: "kiam".to_owned(),
            duration: HOUR,
            longest: HOUR,
            ..SessionSettings::default()
        },
    }
}

impl Fixture {
    pub(crate) async fn new(planted: Planted) -> Self {
        let clock = SimClock::new();
        let network = Network::new(planted);
        let (projection, view) = Projection::new();
        let settings = StreamSettings {
            node: NODE.to_owned(),
            server: "kiam-server:9610".to_owned(),
            token_file: None,
            guarded: true,
            timeouts: Timeouts {
                random: chance,
                ..Timeouts::default()
            },
        };
        let client = Client::new(
            settings,
            Box::new(network.clone()),
            Box::new(network.clone()),
            projection,
            AgentMetrics::new(&Registry::new()).unwrap(),
            Readiness::new().awaits("the first snapshot"),
        );
        let stop = CancellationToken::new();
        tokio::spawn(client.run(stop.clone()));
        let mut fixture = Self {
            clock,
            sts: Sts::new(clock, planted),
            network,
            truth: Arc::new(Cluster::new()),
            objects: BTreeMap::new(),
            slots: BTreeMap::new(),
            born: 0,
            replicas: BTreeMap::new(),
            api: watch::Sender::new(true),
            api_changed: Instant::now(),
            link: (Link::Fine, Instant::now()),
            changed: Instant::now(),
            named: BTreeMap::new(),
            of_account: BTreeSet::new(),
            permitted: BTreeSet::new(),
            had: BTreeMap::new(),
            view,
            agent: Some(stop.drop_guard()),
            tally: Tally::default(),
        };
        for number in 0..REPLICAS {
            fixture.start(number);
        }
        fixture.permit(Some(2));
        fixture
    }

    /// One random event occurs, and some time passes.
    pub(crate) async fn step(&mut self) {
        match below(18) {
            0..=3 => self.pod(below(6)),
            4 => self.delete(below(6)),
            5 => self.permit((below(4) > 0).then(|| below(3))),
            6 => self.account((below(2) > 0).then(|| below(3))),
            7 => self.api(below(2) == 0),
            8 | 9 => {
                let kinds = [
                    StsMode::Up,
                    StsMode::Slow,
                    StsMode::Hangs,
                    StsMode::Fails(IssueErrorKind::Network),
                    StsMode::Fails(IssueErrorKind::AccessDenied),
                    StsMode::Fails(IssueErrorKind::Throttled),
                ];
                let mode = kinds[below(6) as usize];
                self.tally.failed_calls +=
                    u64::from(matches!(mode, StsMode::Fails(_) | StsMode::Hangs));
                self.sts.set_mode(mode);
            }
            10..=12 => {
                let links = [Link::Fine, Link::Fine, Link::Slow, Link::Stuck, Link::Cut];
                self.link(links[below(5) as usize]);
            }
            13 => self.stop(below(u64::from(REPLICAS)) as u16),
            14 | 15 => {
                let number = below(u64::from(REPLICAS)) as u16;
                self.stop(number);
                self.start(number);
            }
            // A watch restarts.
            16 => self.list_again(below(u64::from(REPLICAS)) as u16),
            _ => tokio::time::sleep(Duration::from_secs(60 * below(20))).await,
        }
        tokio::time::sleep(Duration::from_millis(below(8000))).await;
    }

    /// Ends all faults, and waits.
    pub(crate) async fn heal(&mut self) {
        self.link(Link::Fine);
        self.sts.set_mode(StsMode::Up);
        self.api(true);
        for number in 0..REPLICAS {
            if !self.replicas.contains_key(&number) {
                self.start(number);
            }
        }
        tokio::time::sleep(HEALED).await;
    }

    /// Checks the invariants.
    pub(crate) fn check(&mut self) {
        let now = self.clock.now();
        let snapshot = self.view.load();
        let mut have = BTreeMap::new();
        for pod in snapshot.pods() {
            let uid = pod.facts.uid.to_string();
            let named = self.named.get(&uid);
            let named = named.unwrap_or_else(|| panic!("{uid} was never on {NODE}"));
            let Seen::Granted(grant) = &pod.outcome else {
                continue;
            };
            let role = grant.role.as_str();
            let number: u64 = role.strip_prefix(BASE).unwrap()[1..].parse().unwrap();
            let by_account = named.contains(&None) && self.of_account.contains(&number);
            let ever = named.contains(&Some(number)) || by_account;
            assert!(ever, "{uid} never had {role}, but {named:?}");
            assert!(
                self.permitted.contains(&number),
                "{role} was never permitted"
            );
            if let Some(issued) = &grant.issued {
                let key = issued.access_key_id();
                let own = key.rsplit('/').next().unwrap();
                assert_eq!(
                    own,
                    grant.role.name(),
                    "{uid} has credentials of {own} for {role}"
                );
            }
            if let Some(valid) = grant.valid(now) {
                have.insert(uid, (format!("granted {role}"), valid.expiration()));
            }
        }
        self.tally.served += have.len() as u64;
        // No pod has lost credentials whose grant all replicas and the agent know to be unchanged.
        if self.is_certain() {
            let truth = self.truth_of();
            for (uid, (granted, until)) in &self.had {
                let still = truth.get(uid) == Some(granted) && now < *until;
                self.tally.kept += u64::from(still);
                assert!(
                    !still || have.contains_key(uid),
                    "{uid} has lost its credentials"
                );
            }
            have.retain(|uid, (granted, _)| truth.get(uid) == Some(granted));
            self.had = have;
        } else {
            self.had.clear();
        }
    }

    /// Checks the complete state after a time without faults.
    pub(crate) fn check_complete(&self) {
        let now = self.clock.now();
        let snapshot = self.view.load();
        let seen: BTreeMap<String, String> = snapshot
            .pods()
            .map(|pod| {
                let outcome = match &pod.outcome {
                    Seen::NoRole => "no role".to_owned(),
                    Seen::Granted(grant) => {
                        let left = grant.valid(now).map(|issued| issued.expiration());
                        let left = left.and_then(|until| until.duration_since(now).ok());
                        assert!(
                            left.is_some_and(|left| left >= LEAST_LEFT),
                            "{}: {left:?} left, {:?}",
                            pod.facts.uid,
                            grant.failure
                        );
                        format!("granted {}", grant.role)
                    }
                    Seen::Forbidden { reason, .. } => format!("forbidden {reason}"),
                    Seen::Undecided { awaiting } => format!("awaiting {awaiting}"),
                };
                (pod.facts.uid.to_string(), outcome)
            })
            .collect();
        assert_eq!(
            seen,
            self.truth_of(),
            "the view differs from the true state"
        );
    }

    /// Stops the agent, and checks that no replica holds credentials for it.
    pub(crate) async fn end(mut self) -> Tally {
        self.agent.take();
        tokio::time::sleep(Duration::from_secs(300)).await;
        for replica in self.replicas.values() {
            assert!(
                replica.store.is_empty(),
                "{} still holds credentials",
                replica.address
            );
        }
        (self.tally.streams, self.tally.cut) = self.network.tally();
        self.tally.sts_calls = self.sts.calls();
        self.tally
    }

    /// Returns whether no change is in flight, from the API to the replicas or from there to the
    /// agent.
    fn is_certain(&self) -> bool {
        let (since, now) = (self.changed + LAG, Instant::now());
        let (link, link_since) = self.link;
        let delivered = if *self.api.borrow() {
            since < now && self.api_changed + LAG < now
        } else {
            since < self.api_changed
        };
        let received = if link == Link::Stuck {
            since < link_since
        } else {
            link_since + LAG < now
        };
        delivered && received
    }

    /// Returns the decisions of the policies about the pods of the node.
    fn truth_of(&self) -> BTreeMap<String, String> {
        let settings = settings();
        let contexts = self.truth.node(NODE).into_iter();
        contexts
            .map(|context| {
                let outcome = match decide(&context, &settings) {
                    Outcome::NoRole => "no role".to_owned(),
                    Outcome::Granted(identity) => format!("granted {}", identity.role),
                    Outcome::Forbidden { reason, .. } => format!("forbidden {reason}"),
                    Outcome::Undecided { awaiting } => format!("awaiting {awaiting}"),
                };
                (context.pod.uid.to_string(), outcome)
            })
            .collect()
    }

    /// Creates a pod, or changes its annotation.
    fn pod(&mut self, slot: u64) {
        let role = (below(4) > 0).then(|| below(4));
        let born = &mut self.born;
        let known = self.slots.entry(slot).or_insert_with(|| {
            *born += 1;
            ApiPod {
                uid: format!("uid-{slot}-{born}"),
                node: if below(5) == 0 { "node-2" } else { NODE },
                role: None,
            }
        });
        known.role = role;
        let ApiPod { uid, node, .. } = known.clone();
        if node == NODE {
            self.named.entry(uid.clone()).or_default().insert(role);
        }
        self.put(Object::Pod(Pod {
            uid: uid.into(),
            namespace: "web".into(),
            name: format!("p{slot}").into(),
            node: Some(node.into()),
            service_account: "default".into(),
            addresses: Box::default(),
            host_network: false,
            static_hash: None,
            created: 0,
            annotations: Annotations {
                role: role.map(|role| format!("r{role}").into()),
                ..Annotations::default()
            }
            .boxed(),
        }));
    }

    fn delete(&mut self, slot: u64) {
        if let Some(ApiPod { uid, .. }) = self.slots.remove(&slot) {
            self.remove(ObjectKey::Pod(uid.into()));
        }
    }

    fn permit(&mut self, most: Option<u64>) {
        self.permitted
            .extend(most.iter().flat_map(|most| 0..=*most));
        let expression = most.map(|most| format!("{BASE}r[0-{most}]"));
        self.put(Object::Namespace(Namespace {
            name: "web".into(),
            permitted: Permitted::compile(expression.as_deref(), Anchoring::Whole),
        }));
    }

    fn account(&mut self, role: Option<u64>) {
        self.of_account.extend(role);
        self.put(Object::ServiceAccount(ServiceAccount {
            namespace: "web".into(),
            name: "default".into(),
            role: role.map(|role| format!("r{role}").into()),
        }));
    }

    fn link(&mut self, link: Link) {
        if self.link.0 != link {
            self.link = (link, Instant::now());
            self.network.link(link);
        }
    }

    fn api(&mut self, up: bool) {
        if self.api.send_replace(up) != up {
            self.api_changed = Instant::now();
        }
    }

    fn put(&mut self, object: Object) {
        let key = object.key();
        let of_kind = self.objects.entry(kind_of(&key)).or_default();
        of_kind.insert(format!("{key:?}"), object.clone());
        self.truth.apply(object.clone());
        self.send(kind_of(&key), &WatchEvent::Applied(object));
    }

    fn remove(&mut self, key: ObjectKey) {
        let kind = kind_of(&key);
        self.objects
            .entry(kind)
            .or_default()
            .remove(&format!("{key:?}"));
        self.truth.delete(&key);
        self.send(kind, &WatchEvent::Deleted(key));
    }

    fn send(&mut self, kind: Kind, event: &WatchEvent) {
        self.changed = Instant::now();
        for replica in self.replicas.values() {
            drop(replica.feeds[&kind].send((soon(), event.clone())));
        }
    }

    fn list_again(&self, number: u16) {
        let Some(replica) = self.replicas.get(&number) else {
            return;
        };
        for kind in Kind::ALL {
            let of_kind = self.objects.get(&kind);
            let objects = of_kind.into_iter().flat_map(|all| all.values().cloned());
            let event = WatchEvent::Listed(kind, objects.collect());
            drop(replica.feeds[&kind].send((soon(), event)));
        }
    }

    fn stop(&mut self, number: u16) {
        if let Some(replica) = self.replicas.remove(&number) {
            self.tally.restarts += 1;
            self.network.down(replica.address);
        }
    }

    fn start(&mut self, number: u16) {
        let address = SocketAddr::from(([10, 0, 0, 1], 9000 + number));
        let stop = CancellationToken::new();
        let cluster = Arc::new(Cluster::new());
        let registry = Registry::new();
        let store = Arc::new(Store::new(
            Arc::new(self.sts.clone()),
            Arc::new(self.clock),
            chance,
            ExpiryContract::new(HOUR, HOUR / 2).unwrap(),
            Limits {
                concurrency: 16,
                per_second: 100.0,
            },
            StoreMetrics::new(&registry).unwrap(),
        ));
        let age = StreamAge {
            max: Duration::from_secs(10 * 60),
            random: chance,
        };
        let service = Service::new(
            Arc::clone(&cluster),
            Arc::clone(&store),
            Arc::new(settings()),
            NodeProof::None,
            age,
            StreamMetrics::new(&registry).unwrap(),
            stop.clone(),
        );
        let feed = |kind| {
            let (to, from) = mpsc::unbounded_channel();
            tokio::spawn(watch_kind(Arc::clone(&cluster), from, self.api.subscribe()));
            (kind, to)
        };
        let replica = Replica {
            address,
            store,
            feeds: Kind::ALL.map(feed).into(),
            _running: stop.drop_guard(),
        };
        self.replicas.insert(number, replica);
        self.network.up(address, service);
        self.list_again(number);
    }
}

fn soon() -> Instant {
    Instant::now() + LAG.mul_f64(0.9 * chance())
}

fn kind_of(key: &ObjectKey) -> Kind {
    match key {
        ObjectKey::Pod(_) => Kind::Pod,
        ObjectKey::Namespace(_) => Kind::Namespace,
        ObjectKey::ServiceAccount(..) => Kind::ServiceAccount,
    }
}

/// One watch: delivers its events in order, each at its time and while the API is up.
async fn watch_kind(
    cluster: Arc<Cluster>,
    mut from: mpsc::UnboundedReceiver<(Instant, WatchEvent)>,
    mut api: watch::Receiver<bool>,
) {
    while let Some((at, event)) = from.recv().await {
        tokio::time::sleep_until(at).await;
        if api.wait_for(|up| *up).await.is_err() {
            return;
        }
        match event {
            WatchEvent::Applied(object) => cluster.apply(object),
            WatchEvent::Deleted(key) => cluster.delete(&key),
            WatchEvent::Listed(kind, objects) => {
                let keys: HashSet<_> = objects.iter().map(Object::key).collect();
                objects.into_iter().for_each(|object| cluster.apply(object));
                cluster.listed(kind, &keys);
            }
        }
    }
}
