//! The metadata service of one pod, by a clock that the test sets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kiam_agent::caller::{Identify, PodRef, Unidentified};
use kiam_agent::metadata::{Listening, MetadataMetrics, Settings, Sources, V1Users};
use kiam_agent::stream::ConnectionState;
use kiam_agent::token_key::TokenKey;
use kiam_agent::view::{Failure, GrantedRole, Outcome, PodFacts, Projection, Update};
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::RoleArn;
use prometheus::TextEncoder;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct OnePod;

impl Identify for OnePod {
    fn identify(&self, _peer: SocketAddr) -> Result<PodRef, Unidentified> {
        Ok(PodRef::Uid(PodUid::new("uid-1")))
    }
}

/// A running metadata service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    now: Arc<AtomicU64>,
    projection: Projection,
    registry: Registry,
    _connection: watch::Sender<ConnectionState>,
    _runtime: Runtime,
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

impl Service {
    pub(crate) fn start(now: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let now = Arc::new(AtomicU64::new(now));
        let registry = Registry::new();
        let (mut projection, view) = Projection::new();
        projection.begin();
        let facts = PodFacts {
            uid: PodUid::from("uid-1"),
            namespace: "default".into(),
            name: "web".into(),
            service_account: "web".into(),
            addresses: Box::new([]),
            host_network: false,
            static_hash: None,
        };
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap();
        let outcome = Outcome::Granted(GrantedRole { role, identity: 1 });
        projection.apply(Update::Applied(facts, outcome)).unwrap();
        projection.apply(Update::Synced).unwrap();
        let listening = Listening::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listening.address().unwrap();
        let (connection, connections) = watch::channel(ConnectionState::Starting);
        let clock = Arc::clone(&now);
        let sources = Sources {
            clock: Arc::new(move || at(clock.load(Ordering::Relaxed))),
            identify: Arc::new(OnePod),
            token_key: TokenKey::random(),
            connection: connections,
            v1_users: V1Users::new(view.clone(), &registry).unwrap(),
            metrics: MetadataMetrics::new(&registry).unwrap(),
            view,
        };
        let settings = Settings {
            pod_wait: Duration::from_millis(20),
            ..Settings::default()
        };
        let service = listening.service(settings, sources);
        runtime.spawn(service.run(std::future::ready(()), CancellationToken::new()));
        Self {
            address,
            now,
            projection,
            registry,
            _connection: connection,
            _runtime: runtime,
        }
    }

    pub(crate) fn set_time(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(crate) fn issue(&mut self, key: &str, issued: u64, expires: u64) {
        let credentials = SessionCredentials {
            access_key_id: key.to_owned(),
            secret_access_key: "secret".to_owned().into(),
            session_token: "token".to_owned().into(),
            expiration: at(expires),
            issued: at(issued),
        };
        self.apply(Update::Issued {
            identity: 1,
            credentials,
        });
    }

    pub(crate) fn fail(&mut self) {
        let failure = Failure {
            error: "STS does not answer".into(),
            permanent: false,
        };
        self.apply(Update::Failed {
            identity: 1,
            failure,
        });
    }

    fn apply(&mut self, update: Update) {
        self.projection.apply(update).unwrap();
        self.projection.publish();
    }

    /// Number of successful requests for credentials.
    pub(crate) fn fetched(&self) -> u64 {
        let text = TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        ["credentials", "credentialsExtended"]
            .into_iter()
            .filter_map(|handler| {
                let name = format!("kiam_metadata_success_total{{handler=\"{handler}\"}} ");
                text.lines()
                    .find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
            })
            .sum()
    }
}
