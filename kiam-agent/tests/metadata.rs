//! The metadata surface, through real sockets: method, path and pod in; status, headers, body out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiam_agent::args::ImdsV2;
use kiam_agent::caller::{Identify, PodRef, PodUid, Refusal};
use kiam_agent::metadata::{Listening, MetadataMetrics, Settings};
use kiam_agent::view::{Decision, Failure, PodFacts, Projection, Uid, Update};
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;
use prometheus::{Registry, TextEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LISTING: &str = "/latest/meta-data/iam/security-credentials/";
const ARN: &str = "arn:aws:iam::123456789012:role/team/reader";
const POD_WAIT: Duration = Duration::from_millis(50);

/// Pods by the last part of the loopback address that they call from.
mod pods {
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

/// The kernel's word, by the caller's address.
struct ByAddress;

impl Identify for ByAddress {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal> {
        match last_part(peer.ip()) {
            pods::NO_POD => Err(refusal()),
            pod => Ok(pod_ref(pod)),
        }
    }
}

fn uid(pod: u8) -> String {
    format!("uid-{pod}")
}

fn pod_ref(pod: u8) -> PodRef {
    PodRef::Uid(PodUid::new(&uid(pod)))
}

fn refusal() -> Refusal {
    Refusal::NotAPod
}

fn last_part(address: IpAddr) -> u8 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

fn facts(pod: u8) -> PodFacts {
    let address = match pod {
        pods::ELSEWHERE | pods::HOST_NETWORK => Ipv4Addr::new(10, 9, 9, 9),
        pod => Ipv4Addr::new(127, 0, 0, pod),
    };
    PodFacts {
        uid: Uid::from(uid(pod).as_str()),
        namespace: "default".into(),
        name: format!("pod-{pod}").into(),
        service_account: "builder".into(),
        addresses: Box::new([address.into()]),
        host_network: pod == pods::HOST_NETWORK,
        static_hash: None,
    }
}

fn granted(pod: u8) -> Update {
    let decision = Decision::Granted {
        role: RoleArn::parse(ARN).unwrap(),
        identity: u64::from(pod),
    };
    Update::Applied(facts(pod), decision)
}

fn issued(pod: u8, expiration: u64) -> Update {
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

fn failed(pod: u8, error: &str, permanent: bool) -> Update {
    let failure = Failure {
        error: error.into(),
        permanent,
    };
    let identity = u64::from(pod);
    Update::Failed { identity, failure }
}

const IN_2096: u64 = 4_000_000_000;

fn told() -> Vec<Update> {
    let forbidden = Decision::Forbidden {
        role: "admin".into(),
        reason:
            "the namespace default permits none; see its annotation iam.amazonaws.com/permitted"
                .into(),
    };
    let undecided = Decision::Undecided {
        awaiting: "the namespace default".into(),
    };
    vec![
        granted(pods::GRANTED),
        issued(pods::GRANTED, IN_2096),
        Update::Applied(facts(pods::NO_ROLE), Decision::NoRole),
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

struct Service {
    address: SocketAddr,
    projection: Projection,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

async fn serve(settings: Settings) -> Service {
    let registry = Registry::new();
    let (mut projection, view) = Projection::new();
    projection.begin();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listening = Listening::bind(local).await.unwrap();
    let address = listening.address().unwrap();
    let metrics = MetadataMetrics::new(&registry).unwrap();
    let service = listening.service(settings, view, Arc::new(ByAddress), metrics);
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(stop.clone()));
    Service {
        address,
        projection,
        registry,
        stop,
        running,
    }
}

fn settings() -> Settings {
    Settings {
        pod_wait: POD_WAIT,
        ..Settings::default()
    }
}

/// A service that knows all the pods there are.
async fn informed() -> Service {
    let mut service = serve(settings()).await;
    service.tell(told());
    service
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Service {
    fn tell(&mut self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.projection.apply(update).unwrap();
        }
        self.projection.publish();
    }

    async fn connect(&self, pod: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, pod), 0));
        socket.bind(from).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Sends bytes, ends the sending side, and reads to the end.
    async fn raw(&self, pod: u8, request: &str) -> String {
        let mut stream = self.connect(pod).await;
        // A request that is refused early may not be taken in whole.
        drop(stream.write_all(request.as_bytes()).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8(answer).unwrap()
    }

    async fn request(&self, pod: u8, method: &str, path: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        parse(&self.raw(pod, &request).await)
    }

    async fn get(&self, pod: u8, path: &str) -> Answer {
        self.request(pod, "GET", path).await
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        let text = text.unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line))?;
        Some(value.trim().parse().unwrap())
    }
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect(text);
    let status = head.split(' ').nth(1).expect(text).parse().expect(text);
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn the_role_s_name_has_no_newline_in_any_spelling_of_the_path() {
    let service = informed().await;
    for path in [
        LISTING,
        "/latest/meta-data/iam/security-credentials",
        "/1.0/meta-data/iam/security-credentials/",
        "/2021-03-23/meta-data/iam/security-credentials",
        "//latest//meta-data/iam/security-credentials//",
        "/latest/meta-data/./iam/x/../security-credentials/",
        "/latest/meta%2Ddata/iam/security-credentials/",
        "/latest/meta-data/iam/security-credentials-extended/",
        "/latest/meta-data/iam/security-credentials/?x=y",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    ] {
        let answer = service.get(pods::GRANTED, path).await;
        assert_eq!((answer.status, &*answer.body), (200, "reader"), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(answer.header("server"), Some("EC2ws"));
        assert_eq!(answer.header("content-length"), Some("6"));
    }
    let ok = "kiam_metadata_success_total{handler=\"roleName\"}";
    assert_eq!(service.metric(ok), Some(10.0));
}

#[tokio::test]
async fn credentials_are_the_real_service_s_document_in_any_spelling_of_the_role() {
    let service = informed().await;
    let document = r#"{
  "Code" : "Success",
  "LastUpdated" : "2023-11-14T22:13:20Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "ASIAPOD2",
  "SecretAccessKey" : "hunter2",
  "Token" : "hunter3",
  "Expiration" : "2096-10-02T07:06:40Z"
}"#;
    for role in [
        "reader",
        "reader/",
        "/reader",
        "team/reader",
        "team%2Freader",
        "%72eader",
        ARN,
        &ARN.replace(':', "%3A").replace('/', "%2f"),
    ] {
        let path = format!("{LISTING}{role}");
        let answer = service.get(pods::GRANTED, &path).await;
        assert_eq!((answer.status, &*answer.body), (200, document), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    let path = "/latest/meta-data/iam/security-credentials-extended/reader";
    let answer = service.get(pods::GRANTED, path).await;
    let extended = document.replace("40Z\"\n", "40Z\",\n  \"AccountId\" : \"123456789012\"\n");
    assert_eq!((answer.status, answer.body), (200, extended));
}

#[tokio::test]
async fn each_pod_is_answered_as_its_state_is() {
    let service = informed().await;
    let credentials = format!("{LISTING}reader");
    let of_other = format!("{LISTING}admin");
    let (listing, credentials, of_other) = (LISTING, &*credentials, &*of_other);
    // Pod, path, status, and what the one line says.
    let table: [(u8, &str, u16, &str); 23] = [
        (
            pods::NO_ROLE,
            listing,
            404,
            "iam.amazonaws.com/role of the pod or of its service account \"builder\"",
        ),
        (pods::NO_ROLE, credentials, 404, "default/pod-3 has no role"),
        (pods::FORBIDDEN, listing, 403, "iam.amazonaws.com/permitted"),
        (
            pods::FORBIDDEN,
            of_other,
            403,
            "default/pod-4 may not have the role \"admin\"",
        ),
        (
            pods::UNDECIDED,
            listing,
            503,
            "awaiting the namespace default",
        ),
        (pods::UNDECIDED, credentials, 503, "not decided yet"),
        (pods::AWAITED, listing, 200, "reader"),
        (pods::AWAITED, credentials, 503, "still on their way"),
        (pods::FAILING, listing, 200, "reader"),
        (pods::FAILING, credentials, 503, "STS does not answer"),
        (pods::DENIED, credentials, 403, "the role's trust policy"),
        (
            pods::EXPIRED,
            credentials,
            503,
            "expired at 2023-11-14T23:13:20Z",
        ),
        (
            pods::ELSEWHERE,
            listing,
            403,
            "comes from 127.0.0.10, which is none",
        ),
        (
            pods::ELSEWHERE,
            credentials,
            403,
            "addresses of pod default/pod-10",
        ),
        (pods::UNKNOWN, listing, 503, "is not known yet"),
        (pods::UNKNOWN, credentials, 503, "is not known yet"),
        (pods::NO_POD, listing, 403, "in no pod"),
        (pods::NO_POD, credentials, 403, ""),
        (pods::HOST_NETWORK, credentials, 200, "ASIAPOD13"),
        (pods::FAILING_WITH_VALID, credentials, 200, "ASIAPOD14"),
        (
            pods::GRANTED,
            of_other,
            403,
            "asked for the role \"admin\", and its own is reader",
        ),
        (
            pods::GRANTED,
            "/latest/user-data",
            404,
            "no \"/latest/user-data\" here",
        ),
        (
            pods::GRANTED,
            "/latest/dynamic/../%2e%2e/x%00",
            400,
            "the path is no path",
        ),
    ];
    for (pod, path, status, text) in table {
        let answer = service.get(pod, path).await;
        assert_eq!(answer.status, status, "{pod} {path}: {answer:?}");
        assert!(answer.body.contains(text), "{pod} {path}: {answer:?}");
        if status != 200 {
            let line = answer.body.strip_suffix('\n').expect("a line");
            assert!(!line.contains('\n') && !line.is_empty(), "{answer:?}");
            assert!(!answer.body.contains("hunter"), "{answer:?}");
        }
        let retry = answer.header("retry-after").is_some();
        assert_eq!(retry, status == 503, "{pod} {path}: {answer:?}");
    }
    let refused = |reason: &str| {
        let line = format!("kiam_metadata_refusals_total{{reason=\"{reason}\"}}");
        service.metric(&line)
    };
    assert_eq!(refused("address_mismatch"), Some(2.0));
    assert_eq!(refused("not_a_pod"), Some(2.0));
    assert_eq!(refused("no_role"), Some(2.0));
    assert_eq!(
        service.metric("kiam_metadata_proxy_requests_blocked_total"),
        Some(2.0)
    );
    assert_eq!(
        service.metric("kiam_metadata_empty_role_total{handler=\"roleName\"}"),
        Some(1.0)
    );
    let code = "kiam_metadata_responses_total{code=\"503\",handler=\"credentials\"}";
    assert_eq!(service.metric(code), Some(5.0));
}

#[tokio::test]
async fn no_pod_gets_another_s_credentials_or_the_node_s() {
    let service = informed().await;
    for pod in pods::ALL {
        for path in [
            "/latest/meta-data/iam/security-credentials/reader",
            "/latest/meta-data/iam/security-credentials-extended/reader",
            "/latest/meta-data/iam/info",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/user-data",
            "/latest/dynamic/instance-identity/document",
            "/",
        ] {
            let answer = service.get(pod, path).await;
            if let Some((_, key)) = answer.body.split_once("ASIAPOD") {
                assert!(
                    key.starts_with(&format!("{pod}\"")),
                    "{pod} {path}: {answer:?}"
                );
                assert!(path.ends_with("/reader"));
            }
        }
    }
}

#[tokio::test]
async fn methods() {
    let service = informed().await;
    for path in [LISTING, "/latest/meta-data/iam/security-credentials/reader"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            let answer = service.request(pods::GRANTED, method, path).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
        let head = service.request(pods::GRANTED, "HEAD", path).await;
        let get = service.get(pods::GRANTED, path).await;
        assert_eq!((head.status, &*head.body), (200, ""));
        assert_eq!(head.header("content-length"), get.header("content-length"));
    }
}

const TOKEN: &str = "/latest/api/token";

impl Service {
    async fn with(&self, pod: u8, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        parse(&self.raw(pod, &request).await)
    }

    async fn token(&self, pod: u8) -> String {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
        let answer = self.with(pod, "PUT", TOKEN, ttl).await;
        let echoed = answer.header("x-aws-ec2-metadata-token-ttl-seconds");
        assert_eq!((answer.status, echoed), (200, Some("21600")), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        answer.body
    }
}

#[tokio::test]
async fn tokens_are_given_as_the_real_service_gives_them() {
    let service = informed().await;
    let ttl = |ttl: &str| format!("X-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\n");
    let forwarded = format!("{}X-Forwarded-For: 10.0.0.1\r\n", ttl("60"));
    let dated = "/2021-03-23/api/token";
    for (pod, method, path, headers, status) in [
        (pods::GRANTED, "PUT", TOKEN, ttl("1"), 200),
        (pods::GRANTED, "PUT", TOKEN, ttl("21600"), 200),
        (pods::GRANTED, "PUT", "/latest//api/token/", ttl("60"), 200),
        (pods::GRANTED, "PUT", TOKEN, String::new(), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("0"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("21601"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("-1"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("six hours"), 400),
        (
            pods::GRANTED,
            "PUT",
            TOKEN,
            ttl("99999999999999999999"),
            400,
        ),
        (pods::GRANTED, "PUT", TOKEN, forwarded, 403),
        (pods::GRANTED, "PUT", dated, ttl("60"), 403),
        (pods::GRANTED, "GET", TOKEN, ttl("60"), 405),
        (pods::GRANTED, "POST", TOKEN, ttl("60"), 405),
        // A pod that has no role, or is not known yet, finds that out with a token in hand.
        (pods::NO_ROLE, "PUT", TOKEN, ttl("60"), 200),
        (pods::UNKNOWN, "PUT", TOKEN, ttl("60"), 200),
        (pods::NO_POD, "PUT", TOKEN, ttl("60"), 403),
    ] {
        let answer = service.with(pod, method, path, &headers).await;
        assert_eq!(
            answer.status, status,
            "{pod} {method} {path} {headers}: {answer:?}"
        );
        let allowed = answer.header("allow");
        assert_eq!(allowed, (status == 405).then_some("PUT"));
    }
}

#[tokio::test]
async fn a_token_that_comes_along_must_be_the_pod_s() {
    let mut service = informed().await;
    let header = |token: &str| format!("X-aws-ec2-metadata-token: {token}\r\n");
    let (own, other) = (
        header(&service.token(pods::GRANTED).await),
        header(&service.token(pods::FAILING).await),
    );
    let path = format!("{LISTING}reader");
    let paths = [LISTING, &path];
    for path in paths {
        for (headers, status) in [
            (&own, 200),
            (&String::new(), 200),
            (&other, 401),
            (&header(""), 401),
            (&header("AQAEAexample=="), 401),
        ] {
            let answer = service.with(pods::GRANTED, "GET", path, headers).await;
            assert_eq!(answer.status, status, "{headers}: {answer:?}");
        }
    }
    let answer = service
        .with(pods::GRANTED, "GET", "/latest/user-data", &other)
        .await;
    assert_eq!(answer.status, 401);
    let versions = |version: &str| {
        let line = format!("kiam_metadata_imds_requests_total{{version=\"{version}\"}}");
        service.metric(&line).unwrap()
    };
    assert_eq!((versions("v1"), versions("v2")), (2.0, 9.0));

    let required = Settings {
        imds_v2: ImdsV2::Required,
        ..settings()
    };
    service = serve(required).await;
    service.tell(told());
    let own = header(&service.token(pods::GRANTED).await);
    for path in paths {
        let answer = service.with(pods::GRANTED, "GET", path, &own).await;
        assert_eq!(answer.status, 200);
        let answer = service.get(pods::GRANTED, path).await;
        assert_eq!(answer.status, 401);
        assert!(answer.body.contains("PUT /latest/api/token"), "{answer:?}");
    }
}

#[tokio::test]
async fn http_as_clients_speak_it() {
    let service = informed().await;
    let pod = pods::GRANTED;
    // HTTP/1.0 without a Host.
    let answer = parse(
        &service
            .raw(pod, &format!("GET {LISTING} HTTP/1.0\r\n\r\n"))
            .await,
    );
    assert_eq!((answer.status, &*answer.body), (200, "reader"));
    // Two requests at once, answered in order.
    let twice = format!(
        "GET {LISTING} HTTP/1.1\r\nHost: x\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    );
    let answers = service.raw(pod, &twice).await;
    let second = answers.find("HTTP/1.1 404").expect(&answers);
    assert!(answers[..second].contains("reader"), "{answers}");
    // A body that nobody asked for.
    let body = format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(parse(&service.raw(pod, &body).await).status, 200);
    // What is no request, or too much of one.
    assert_eq!(parse(&service.raw(pod, "hello\r\n\r\n").await).status, 400);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(100_000));
    let status = parse(&service.raw(pod, &long).await).status;
    assert!([414, 431].contains(&status), "{status}");
    let headers = format!("X-Y: {}\r\n", "z".repeat(1000)).repeat(100);
    let many = format!("GET {LISTING} HTTP/1.1\r\n{headers}\r\n");
    assert_eq!(parse(&service.raw(pod, &many).await).status, 431);
    // The service is none the worse.
    assert_eq!(service.get(pod, LISTING).await.status, 200);
}

#[tokio::test]
async fn a_request_waits_for_what_is_on_its_way_and_is_woken() {
    let patient = Settings {
        pod_wait: Duration::from_secs(10),
        ..Settings::default()
    };
    let mut service = serve(patient).await;
    let path = format!("{LISTING}reader");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut stream = service.connect(pods::GRANTED).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answered = tokio::spawn(async move {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    // Each step is news, and none is enough but the last.
    let undecided = Decision::Undecided {
        awaiting: "the namespace default".into(),
    };
    for update in [
        Update::Applied(facts(pods::GRANTED), undecided),
        Update::Synced,
        granted(pods::GRANTED),
    ] {
        service.tell([update]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!answered.is_finished());
    }
    let began = tokio::time::Instant::now();
    service.tell([issued(pods::GRANTED, IN_2096)]);
    let answer = parse(&answered.await.unwrap());
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("ASIAPOD2"));
    assert_eq!(
        service.metric("kiam_metadata_wait_seconds_count"),
        Some(1.0)
    );
    assert_eq!(service.metric("kiam_metadata_waits_over_total"), Some(0.0));
}

#[tokio::test]
async fn before_a_server_has_said_anything_pods_are_told_to_try_again() {
    let service = serve(settings()).await;
    let answer = service.get(pods::GRANTED, LISTING).await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("not heard from a kiam-server"),
        "{answer:?}"
    );
    assert_eq!(service.metric("kiam_metadata_waits_over_total"), Some(1.0));
}

#[tokio::test]
async fn a_kept_connection_follows_the_view() {
    let mut service = informed().await;
    let mut stream = service.connect(pods::GRANTED).await;
    let request = format!("GET {LISTING}reader HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut exchange = async || {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        parse(std::str::from_utf8(&answer[..read]).unwrap())
    };
    assert_eq!(exchange().await.status, 200);
    assert_eq!(exchange().await.status, 200);
    // The grant ends, and with it what the connection may have.
    service.tell([Update::Applied(facts(pods::GRANTED), Decision::NoRole)]);
    assert_eq!(exchange().await.status, 404);
    service.tell([Update::Removed(Uid::from(uid(pods::GRANTED).as_str()))]);
    assert_eq!(exchange().await.status, 503);
    assert_eq!(service.metric("kiam_metadata_connections"), Some(1.0));
}

#[tokio::test]
async fn one_pod_s_many_connections_do_not_keep_others_out() {
    let few = Settings {
        max_connections_per_pod: 3,
        ..settings()
    };
    let mut service = serve(few).await;
    service.tell(told());
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = service.connect(pods::GRANTED).await;
        let request = format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(stream);
    }
    for _ in 0..100 {
        let answer = service.get(pods::GRANTED, LISTING).await;
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("3 connections"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(service.get(pods::HOST_NETWORK, LISTING).await.status, 200);
    let refused = "kiam_metadata_connections_refused_total{limit=\"pod\"}";
    assert_eq!(service.metric(refused), Some(100.0));
    held.clear();
    let again = async {
        while service.get(pods::GRANTED, LISTING).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, again)
        .await
        .expect("places are given back");
}

#[tokio::test]
async fn all_pods_together_have_a_limit_too() {
    let few = Settings {
        max_connections: 2,
        ..settings()
    };
    let mut service = serve(few).await;
    service.tell(told());
    let mut held = Vec::new();
    for pod in [pods::GRANTED, pods::FAILING] {
        let mut stream = service.connect(pod).await;
        let request = format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let answer = service.get(pods::HOST_NETWORK, LISTING).await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("this node has 2"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_is_slow_or_silent_is_not_waited_for() {
    let hasty = Settings {
        header_timeout: Duration::from_millis(100),
        ..settings()
    };
    let mut service = serve(hasty).await;
    service.tell(told());
    for begin in ["", "GET /lat"] {
        let mut stream = service.connect(pods::GRANTED).await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let limit = Duration::from_secs(5);
        let closed = tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await;
        closed.expect("the service hangs up").ok();
    }
    assert_eq!(service.get(pods::GRANTED, LISTING).await.status, 200);
}

#[tokio::test]
async fn stopping_answers_what_is_in_flight() {
    let patient = Settings {
        pod_wait: Duration::from_secs(5),
        ..Settings::default()
    };
    let mut service = serve(patient).await;
    let idle = service.connect(pods::NO_ROLE).await;
    let mut stream = service.connect(pods::GRANTED).await;
    let request = format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    service.stop.cancel();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!service.running.is_finished());
    service.tell([granted(pods::GRANTED)]);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).body, "reader");
    let limit = Duration::from_secs(2);
    let stopped = tokio::time::timeout(limit, &mut service.running).await;
    stopped.expect("stopped in time").unwrap();
    assert!(TcpStream::connect(service.address).await.is_err());
    drop(idle);
}
