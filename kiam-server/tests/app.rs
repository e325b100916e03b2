//! A whole server in this process, with real sockets and TLS, a file as its cluster, and no AWS.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use clap::Parser as _;
use kiam_common::api::node::v1::node_service_client::NodeServiceClient;
use kiam_common::api::node::v1::watch_response::Update;
use kiam_common::api::node::v1::{WatchRequest, WatchResponse, pod_applied};
use kiam_common::credentials::SessionCredentials;
use kiam_common::flags::TlsFlags;
use kiam_common::metrics::Registry;
use kiam_common::tls::{ClientTls, TlsMetrics, TlsSide, connect};
use kiam_server::app::{self, Bound};
use kiam_server::args::{Args, Cli, Command};
use kiam_server::commands;
use kiam_server::credentials::{IssueError, IssueErrorKind, Issuer};
use kiam_server::identity::Identity;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const CERTIFICATE: &str = "--node-authorization=certificate";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Issues credentials at once, except for the role `untrusted`.
struct FakeIssuer;

#[async_trait]
impl Issuer for FakeIssuer {
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError> {
        if identity.role.name() == "untrusted" {
            return Err(IssueError {
                kind: IssueErrorKind::AccessDenied,
                message: "AccessDenied: not authorized to perform: sts:AssumeRole".to_owned(),
            });
        }
        let now = SystemTime::now();
        Ok(SessionCredentials {
            access_key_id: format!("ASIA/{}", identity.role.name()),
            secret_access_key: "secret".to_owned().into(),
            session_token: "token".to_owned().into(),
            expiration: now + Duration::from_secs(3600),
            issued: now,
        })
    }
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn files(folder: &Path, name: &str, authority: &Authority) -> TlsFlags {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    let file = |end: &str, text: String| {
        let path = folder.join(format!("{name}.{end}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFlags {
        cert: file("crt", cert.pem()),
        key: file("key", key.serialize_pem()),
        ca: file("ca", authority.pem()),
    }
}

fn arguments(tls: &TlsFlags, source: &str) -> Vec<String> {
    vec![
        "kiam-server".to_owned(),
        format!("--cert={}", tls.cert.display()),
        format!("--key={}", tls.key.display()),
        format!("--ca={}", tls.ca.display()),
        format!("--source={source}"),
    ]
}

fn pod(number: u8, role: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: p{number}, namespace: web, uid: uid-{number}, annotations: {{iam.amazonaws.com/role: '{role}'}}}}
spec: {{nodeName: node-1}}
---"
    )
}

fn namespace(permitted: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: web, annotations: {{iam.amazonaws.com/permitted: '{permitted}'}}}}
---"
    )
}

struct Fixture {
    folder: tempfile::TempDir,
    authority: Authority,
    server: Bound,
}

impl Fixture {
    async fn new(objects: &str) -> Self {
        Self::with(objects, &[]).await
    }

    async fn with(objects: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority();
        let tls = files(folder.path(), "kiam-server", &authority);
        let cluster = folder.path().join("cluster.yaml");
        std::fs::write(&cluster, objects).unwrap();
        let mut args = arguments(&tls, &format!("file:{}", cluster.display()));
        args.push("--bind=127.0.0.1:0".to_owned());
        args.push("--role-base-arn=arn:aws:iam::123456789012:role/".to_owned());
        args.push(CERTIFICATE.to_owned());
        args.extend(flags.iter().map(ToString::to_string));
        let args = Args::parse_from(args);
        let server = app::build_with(args, Some(Arc::new(FakeIssuer)))
            .await
            .unwrap();
        Self {
            folder,
            authority,
            server,
        }
    }

    async fn channel(&self, node: &str) -> Channel {
        let name = format!("{node}.node.kiam");
        let files = files(self.folder.path(), &name, &self.authority);
        let metrics = TlsMetrics::new(TlsSide::Client, &Registry::new()).unwrap();
        let tls = ClientTls::client(files, metrics).unwrap();
        let name = ServerName::try_from("kiam-server").unwrap();
        connect(self.server.address, name, &tls).await.unwrap()
    }

    async fn watch(&self, of: &str, node: &str) -> Result<Streaming<WatchResponse>, Status> {
        let request = WatchRequest {
            node: node.to_owned(),
            ..WatchRequest::default()
        };
        let mut client = NodeServiceClient::new(self.channel(of).await);
        Ok(client.watch(request).await?.into_inner())
    }

    fn write(&self, objects: &str) {
        let new = self.folder.path().join("cluster.new");
        std::fs::write(&new, objects).unwrap();
        std::fs::rename(new, self.folder.path().join("cluster.yaml")).unwrap();
    }
}

/// Returns the next message as one line.
async fn next(stream: &mut Streaming<WatchResponse>) -> String {
    let message = tokio::time::timeout(Duration::from_secs(10), stream.message());
    let message = match message.await.expect("a message arrives within ten seconds") {
        Ok(message) => message.expect("the stream continues"),
        Err(status) => return format!("end {:?}: {}", status.code(), status.message()),
    };
    match message.update.unwrap() {
        Update::PodApplied(pod) => match pod.outcome.unwrap() {
            pod_applied::Outcome::NoRole(_) => format!("{} no role", pod.name),
            pod_applied::Outcome::Granted(granted) => {
                let (arn, number) = (granted.role_arn, granted.identity);
                format!("{} granted {arn} as {number}", pod.name)
            }
            pod_applied::Outcome::Forbidden(forbidden) => {
                format!("{} forbidden: {}", pod.name, forbidden.reason)
            }
            pod_applied::Outcome::Undecided(undecided) => {
                format!("{} awaits {}", pod.name, undecided.awaiting)
            }
        },
        Update::PodRemoved(removed) => format!("removed {}", removed.uid),
        Update::CredentialsIssued(issued) => {
            assert_eq!(issued.secret_access_key, "secret");
            assert_eq!(issued.session_token, "token");
            format!("issued {} {}", issued.identity, issued.access_key_id)
        }
        Update::CredentialsFailed(failed) => {
            let (number, permanent) = (failed.identity, failed.permanent);
            format!("failed {number} {permanent} {}", failed.error)
        }
        Update::Synced(_) => "synced".to_owned(),
    }
}

#[tokio::test]
async fn an_agent_receives_the_pods_of_its_node_and_every_change() {
    const READER: &str = "p1 granted arn:aws:iam::123456789012:role/reader as";
    let fixture = Fixture::new(&(namespace(".*") + &pod(1, "reader"))).await;
    let mut stream = fixture.watch("node-1", "node-1").await.unwrap();
    assert_eq!(next(&mut stream).await, format!("{READER} 1"));
    assert_eq!(next(&mut stream).await, "synced");
    assert_eq!(next(&mut stream).await, "issued 1 ASIA/reader");

    fixture.write(&(namespace(".*") + &pod(1, "untrusted")));
    let granted = "p1 granted arn:aws:iam::123456789012:role/untrusted as 2";
    assert_eq!(next(&mut stream).await, granted);
    let failed = "failed 2 true AccessDenied: not authorized to perform: sts:AssumeRole";
    assert_eq!(next(&mut stream).await, failed);

    fixture.write(&(namespace(".*/writer") + &pod(1, "reader")));
    let forbidden = next(&mut stream).await;
    let expected = "p1 forbidden: namespace web does not permit";
    assert!(forbidden.starts_with(expected), "{forbidden}");
    // The pod is granted again, with another number, and gets its credentials again.
    fixture.write(&(namespace(".*") + &pod(1, "reader")));
    assert_eq!(next(&mut stream).await, format!("{READER} 3"));
    assert_eq!(next(&mut stream).await, "issued 3 ASIA/reader");
    fixture.write(&namespace(".*"));
    assert_eq!(next(&mut stream).await, "removed uid-1");

    // The server stops: the stream ends with the reason, and all tasks end.
    let stop = CancellationToken::new();
    let running = tokio::spawn(fixture.server.run(stop.clone().cancelled_owned()));
    stop.cancel();
    let end = next(&mut stream).await;
    assert!(
        end.contains("Unavailable") && end.contains("shutting down"),
        "{end}"
    );
    drop(stream);
    running.await.unwrap().unwrap();
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn status_and_metrics_report_connected_nodes_and_failures() {
    let objects = namespace(".*") + &pod(1, "untrusted");
    let fixture = Fixture::with(&objects, &["--prometheus-listen-addr=127.0.0.1:0"]).await;
    let admin = fixture.server.admin.unwrap();
    let mut stream = fixture.watch("node-1", "node-1").await.unwrap();
    while !next(&mut stream).await.starts_with("failed") {}
    let status = get(admin, "/status").await;
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    for part in [
        "\"node\": \"node-1\"",
        "\"kind\": \"access_denied\"",
        "not authorized to perform: sts:AssumeRole",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let metrics = get(admin, "/metrics").await;
    for line in [
        "kiam_policy_decisions_total{outcome=\"granted\"} 1",
        "kiam_policy_decisions_total{outcome=\"forbidden\"} 0",
        "kiam_node_proofs_total{result=\"proved\"} 1",
        "kiam_sts_identities_failing 1",
        "kiam_sts_errors_total{kind=\"access_denied\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let page = get(admin, "/status.html").await;
    let policy = "content-security-policy: default-src 'none'";
    assert!(
        page.contains(policy) && page.contains("<td>node-1</td>"),
        "{page}"
    );
}

#[tokio::test]
async fn streams_for_other_and_invalid_nodes_are_refused() {
    let fixture = Fixture::new(&namespace(".*")).await;
    for (asked, code, part) in [
        (
            "node-2",
            Code::PermissionDenied,
            "proves that it comes from node-1",
        ),
        ("", Code::InvalidArgument, "invalid node name"),
        ("Node 1", Code::InvalidArgument, "invalid node name"),
    ] {
        let status = fixture.watch("node-1", asked).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
}

#[tokio::test]
async fn streams_end_after_their_lifetime_and_are_limited_per_node() {
    let age = "--grpc-max-connection-age-duration=1s";
    let fixture = Fixture::with(&namespace(".*"), &[age]).await;
    let mut streams = Vec::new();
    let refused = loop {
        match fixture.watch("node-1", "node-1").await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(streams.len(), 4);
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, "synced");
        assert!(matches!(stream.message().await, Ok(None)));
    }
    assert!(fixture.watch("node-1", "node-1").await.is_ok());
}

#[tokio::test]
async fn the_health_service_reports_serving() {
    let fixture = Fixture::new(&namespace(".*")).await;
    let mut client = HealthClient::new(fixture.channel("node-1").await);
    for service in ["", "kiam.node.v1.NodeService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut status = String::new();
        for _ in 0..100 {
            let answer = client.check(request.clone()).await.unwrap().into_inner();
            answer.status().as_str_name().clone_into(&mut status);
            if status == "SERVING" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(status, "SERVING", "{service:?}");
    }
}

#[tokio::test]
async fn the_health_command_succeeds_only_for_a_serving_server() {
    let fixture = Fixture::new(&namespace(".*")).await;
    let other = authority();
    let ask = |address: SocketAddr, authority: &Authority, timeout: &str| {
        let tls = files(fixture.folder.path(), "probe", authority);
        let mut words = arguments(&tls, "");
        words.pop();
        words.insert(1, "health".to_owned());
        words.push(format!("--server-address=localhost:{}", address.port()));
        words.push(format!("--timeout={timeout}"));
        let Ok(Cli::Command(Command::Health(args))) = Cli::try_parse_from(words) else {
            panic!("not parsed as the health command");
        };
        commands::health(*args)
    };
    let serving = fixture.server.address;
    let error = ask(serving, &fixture.authority, "300ms").await.unwrap_err();
    assert!(error.to_string().contains("localhost"), "{error}");
    let error = ask(serving, &other, "300ms").await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = ask(closed, &fixture.authority, "300ms").await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("cluster.yaml");
    std::fs::write(&cluster, namespace(".*")).unwrap();
    let tls = files(folder.path(), "localhost", &fixture.authority);
    let mut args = arguments(&tls, &format!("file:{}", cluster.display()));
    args.extend(["--bind=127.0.0.1:0".to_owned(), CERTIFICATE.to_owned()]);
    let server = app::build_with(Args::parse_from(args), Some(Arc::new(FakeIssuer)));
    let server = server.await.unwrap();
    ask(server.address, &fixture.authority, "10s")
        .await
        .unwrap();
}

#[tokio::test]
async fn start_errors_name_the_cause_and_are_classified() {
    let folder = tempfile::tempdir().unwrap();
    let tls = files(folder.path(), "kiam-server", &authority());
    let missing = folder.path().join("missing");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = folder.path().join("cluster.yaml");
    std::fs::write(&cluster, "").unwrap();
    let source = format!("file:{}", cluster.display());
    let no_source = format!("file:{}", missing.display());
    let no_folder = format!("{no_source}/cluster.yaml");
    let no_certificate = TlsFlags {
        cert: missing,
        ..tls.clone()
    };
    let free = "--bind=127.0.0.1:0";
    let bind = format!("--bind={}", taken.local_addr().unwrap());
    let token = "--node-authorization=token";
    for (tls, source, flags, parts, is_usage) in [
        (
            &no_certificate,
            &source,
            [free, CERTIFICATE],
            ["certificate", "missing"],
            true,
        ),
        (
            &tls,
            &no_source,
            [free, CERTIFICATE],
            ["--source", "missing"],
            true,
        ),
        (
            &tls,
            &no_folder,
            [free, CERTIFICATE],
            ["--source", "missing"],
            true,
        ),
        (
            &tls,
            &source,
            [free, token],
            ["token needs", "certificate"],
            true,
        ),
        (
            &tls,
            &source,
            [free, "--role-base-arn=arn:foo"],
            ["--role-base-arn", "arn:foo"],
            true,
        ),
        (
            &tls,
            &source,
            [free, "--session-refresh=60m"],
            ["--session-refresh", "shorter"],
            true,
        ),
        (
            &tls,
            &source,
            [&bind, CERTIFICATE],
            ["--bind", "in use"],
            false,
        ),
    ] {
        let args = arguments(tls, source)
            .into_iter()
            .chain(flags.map(str::to_owned));
        let built = app::build_with(Args::parse_from(args), Some(Arc::new(FakeIssuer))).await;
        let error = built.unwrap_err();
        assert_eq!(error.is_usage(), is_usage, "{error}");
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[tokio::test]
async fn the_audit_log_is_complete_after_shutdown() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let flag = format!("--audit-log=file:{}", log.path().display());
    let objects = namespace(".*/reader") + &pod(1, "reader") + &pod(2, "writer");
    let fixture = Fixture::with(&objects, &[&flag]).await;
    let mut stream = fixture.watch("node-1", "node-1").await.unwrap();
    while next(&mut stream).await != "issued 1 ASIA/reader" {}
    drop(stream);
    fixture.server.run(async {}).await.unwrap();
    let text = std::fs::read_to_string(log.path()).unwrap();
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let mut lines: Vec<_> = text.lines().map(line).collect();
    lines.sort_by_key(|line| line["pod"]["name"].to_string());
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["action"], "grant");
    assert_eq!(lines[0]["access_key_id"], "ASIA/reader");
    assert_eq!(lines[0]["node"], "node-1");
    assert_eq!(lines[1]["action"], "refusal");
    assert_eq!(lines[1]["role"], "writer");
}

/// Messages of kiam v4, from its own protocol definition and not from that of this repository.
#[derive(Clone, PartialEq, prost::Message)]
struct PodRoleRequest {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodRole {
    #[prost(string, tag = "1")]
    name: String,
}

async fn legacy_role(channel: Channel, ip: &str) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/kiam.KiamService/GetPodRole");
    let codec = tonic_prost::ProstCodec::<PodRoleRequest, PodRole>::default();
    let request = PodRoleRequest { ip: ip.to_owned() };
    let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
    answer.map(|role| role.into_inner().name)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_kiam_v4_are_served_only_with_legacy_agents() {
    let with_address = pod(1, "reader").replace("\n---", "\nstatus: {podIP: 10.0.0.1}\n---");
    let objects = namespace(".*") + &with_address;
    let fixture = Fixture::new(&objects).await;
    let refused = legacy_role(fixture.channel("node-1").await, "10.0.0.1").await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    let fixture = Fixture::with(&objects, &["--legacy-agents"]).await;
    let role = legacy_role(fixture.channel("node-1").await, "10.0.0.1").await;
    assert_eq!(role.unwrap(), "reader");
    let unknown = legacy_role(fixture.channel("node-1").await, "10.0.0.2").await;
    let unknown = unknown.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::Unknown, "pod not found")
    );
}
