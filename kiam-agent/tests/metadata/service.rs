//! A service that knows a pod in every state, by the loopback address that it calls from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
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
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const LISTING: &str = "/latest/meta-data/iam/security-credentials/";
pub(crate) const ARN: &str = "arn:aws:iam::123456789012:role/team/reader";
pub(crate) const POD_WAIT: Duration = Duration::from_millis(50);

/// Pods by the last part of the loopback address that they call from.
pub(crate) mod pods {
    /// The agent's own address: the node itself.
    pub(crate) const NODE: u8 = 1;
    pub(crate) const GRANTED: u8 = 2;
    pub(crate) const NO_ROLE: u8 = 3;
    pub(crate) const FORBIDDEN: u8 = 4;
    pub(crate) const UNDECIDED: u8 = 5;
    pub(crate) const AWAITED: u8 = 6;
    pub(crate) const FAILING: u8 = 7;
    pub(crate) const DENIED: u8 = 8;
    pub(crate) const EXPIRED: u8 = 9;
    pub(crate) const ELSEWHERE: u8 = 10;
    pub(crate) const UNKNOWN: u8 = 11;
    pub(crate) const NO_POD: u8 = 12;
    pub(crate) const HOST_NETWORK: u8 = 13;
    pub(crate) const FAILING_WITH_VALID: u8 = 14;
    pub(crate) const ALL: std::ops::RangeInclusive<u8> = 2..=14;
}

/// Identifies callers by their address.
pub(crate) struct ByAddress;

impl Identify for ByAddress {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
        match last_part(peer.ip()) {
            pods::NODE => Err(Unidentified::Unattested),
            pods::NO_POD => Err(refusal()),
            pod => Ok(pod_ref(pod)),
        }
    }
}

pub(crate) fn uid(pod: u8) -> String {
    format!("uid-{pod}")
}

pub(crate) fn pod_ref(pod: u8) -> PodRef {
    PodRef::Uid(PodUid::new(&uid(pod)))
}

pub(crate) fn refusal() -> Unidentified {
    Unidentified::NotAPod
}

pub(crate) fn last_part(address: IpAddr) -> u8 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

pub(crate) fn facts(pod: u8) -> PodFacts {
    let address = match pod {
        pods::ELSEWHERE | pods::HOST_NETWORK => Ipv4Addr::new(10, 9, 9, 9),
        pod => Ipv4Addr::new(127, 0, 0, pod),
    };
    PodFacts {
        uid: PodUid::from(uid(pod).as_str()),
        namespace: "default".into(),
        name: format!("pod-{pod}").into(),
        service_account: "builder".into(),
        addresses: Box::new([address.into()]),
        host_network: pod == pods::HOST_NETWORK,
        static_hash: None,
    }
}

pub(crate) fn granted(pod: u8) -> Update {
    let decision = Outcome::Granted(GrantedRole {
        role: RoleArn::parse(ARN).unwrap(),
        identity: u64::from(pod),
    });
    Update::Applied(facts(pod), decision)
}

pub(crate) fn issued(pod: u8, expiration: u64) -> Update {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let credentials = SessionCredentials {
        access_key_id: format!("ASIAPOD{pod}"),
        secret_access_key: "hunter2".to_owned().into(),
        session_token: "hunter3".to_owned().into(),
        expiration: at(expiration),
        issued: at(1_700_000_000),
    };
    let identity = u64::from(pod);
    Update::Issued {
        identity,
        credentials,
    }
}

pub(crate) fn failed(pod: u8, error: &str, permanent: bool) -> Update {
    let failure = Failure {
        error: error.into(),
        permanent,
    };
    let identity = u64::from(pod);
    Update::Failed { identity, failure }
}

pub(crate) const IN_2096: u64 = 4_000_000_000;

pub(crate) fn updates() -> Vec<Update> {
    let forbidden = Outcome::Forbidden {
        role: "admin".into(),
        reason:
            "the namespace default permits none; see its annotation iam.amazonaws.com/permitted"
                .into(),
    };
    let undecided = Outcome::Undecided {
        awaiting: "the namespace default".into(),
    };
    vec![
        granted(pods::GRANTED),
        issued(pods::GRANTED, IN_2096),
        Update::Applied(facts(pods::NO_ROLE), Outcome::NoRole),
        Update::Applied(facts(pods::FORBIDDEN), forbidden),
        Update::Applied(facts(pods::UNDECIDED), undecided),
        granted(pods::AWAITED),
        granted(pods::FAILING),
        failed(pods::FAILING, "STS does not answer", false),
        granted(pods::DENIED),
        failed(
            pods::DENIED,
            "AccessDenied: not authorized to perform sts:AssumeRole",
            true,
        ),
        granted(pods::EXPIRED),
        issued(pods::EXPIRED, 1_700_003_600),
        granted(pods::ELSEWHERE),
        issued(pods::ELSEWHERE, IN_2096),
        granted(pods::HOST_NETWORK),
        issued(pods::HOST_NETWORK, IN_2096),
        granted(pods::FAILING_WITH_VALID),
        issued(pods::FAILING_WITH_VALID, IN_2096),
        failed(pods::FAILING_WITH_VALID, "STS does not answer", false),
        Update::Synced,
    ]
}

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) projection: Projection,
    pub(crate) connection: watch::Sender<ConnectionState>,
    pub(crate) registry: Registry,
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<()>,
}

pub(crate) async fn serve(settings: Settings) -> Service {
    serve_by(Arc::new(ByAddress), listen(), settings)
}

pub(crate) fn listen() -> Listening {
    Listening::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

pub(crate) fn serve_by(
    identify: Arc<dyn Identify>,
    listening: Listening,
    settings: Settings,
) -> Service {
    let registry = Registry::new();
    let (mut projection, view) = Projection::new();
    projection.begin();
    let address = listening.address().unwrap();
    let (connection, connections) = watch::channel(ConnectionState::Starting);
    let sources = Sources {
        clock: Arc::new(SystemTime::now),
        identify,
        token_key: TokenKey::random(),
        connection: connections,
        v1_users: V1Users::new(view.clone(), &registry).unwrap(),
        metrics: MetadataMetrics::new(&registry).unwrap(),
        view,
    };
    let service = listening.service(settings, sources);
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(std::future::ready(()), stop.clone()));
    Service {
        address,
        projection,
        connection,
        registry,
        stop,
        running,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        pod_wait: POD_WAIT,
        ..Settings::default()
    }
}

/// A service that knows all the pods there are.
pub(crate) async fn informed() -> Service {
    let mut service = serve(settings()).await;
    service.apply(updates());
    service
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Service {
    pub(crate) fn apply(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.projection.apply(update).unwrap();
        }
        self.projection.publish();
    }

    pub(crate) async fn connect(&self, pod: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, pod), 0));
        socket.bind(from).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Sends a request as clients do that would go on, and reads until the service ends the connection.
    pub(crate) async fn exchange(&self, pod: u8, request: &str) -> String {
        let mut stream = self.connect(pod).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// Sends a request, ends the sending side, and reads to the end.
    pub(crate) async fn raw(&self, pod: u8, request: &str) -> String {
        self.bytes(pod, request.as_bytes()).await
    }

    /// Sends bytes like [`Self::raw`], of any kind.
    pub(crate) async fn bytes(&self, pod: u8, request: &[u8]) -> String {
        let mut stream = self.connect(pod).await;
        // A request that is refused early may not be taken in whole.
        drop(stream.write_all(request).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) async fn request(&self, pod: u8, method: &str, path: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        parse(&self.raw(pod, &request).await)
    }

    pub(crate) async fn get(&self, pod: u8, path: &str) -> Answer {
        self.request(pod, "GET", path).await
    }

    pub(crate) fn metric(&self, line: &str) -> Option<f64> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        let text = text.unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line))?;
        Some(value.trim().parse().unwrap())
    }
}

/// Reads until the service ends the connection, which it has to by itself.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    let limit = Duration::from_secs(30);
    let read = tokio::time::timeout(limit, stream.read_to_string(&mut answer)).await;
    read.expect("the service ends the connection").unwrap();
    answer
}

pub(crate) fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect(text);
    let status = head.split(' ').nth(1).expect(text).parse().expect(text);
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
