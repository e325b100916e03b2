//! Asks the agent's own metadata service over loopback, the given number of times, and ends.
//!
//! All is on one thread, so that two runs take the same steps: run with N and with 2N under
//! callgrind, their difference is what N requests take. The few steps of the client are in it. The
//! caller is identified by an address and not by the kernel: kernel programs are not needed here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use kiam_agent::caller::{Identify, PodRef, Unidentified};
use kiam_agent::metadata::{Listening, MetadataMetrics, Settings, Sources, V1Users};
use kiam_agent::stream::ConnectionState;
use kiam_agent::token_key::TokenKey;
use kiam_agent::view::{GrantedRole, Outcome, PodFacts, Projection, Update};
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::RoleArn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const POD: &str = "6fa1c3b2-8d5e-4a7f-9c01-2b3d4e5f6071";
const LISTING: &str = "/latest/meta-data/iam/security-credentials/";
/// Length of AWS's session tokens.
const TOKEN_CHARACTERS: usize = 800;

/// One pod is all there is.
struct OnePod;

impl Identify for OnePod {
    fn identify(&self, _peer: SocketAddr) -> Result<PodRef, Unidentified> {
        Ok(PodRef::Uid(PodUid::new(POD)))
    }
}

fn updates() -> Result<[Update; 3]> {
    let facts = PodFacts {
        uid: PodUid::from(POD),
        namespace: "team-a".into(),
        name: "worker-5d8f7c9b4-x2k8q".into(),
        service_account: "worker".into(),
        addresses: Box::new([IpAddr::V4(Ipv4Addr::LOCALHOST)]),
        host_network: false,
        static_hash: None,
    };
    let role = RoleArn::parse("arn:aws:iam::123456789012:role/a-reader")?;
    let issued = SystemTime::now();
    let credentials = SessionCredentials {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: "x".repeat(40).into(),
        session_token: "x".repeat(TOKEN_CHARACTERS).into(),
        expiration: issued + Duration::from_secs(3600),
        issued,
    };
    let identity = 1;
    Ok([
        Update::Applied(facts, Outcome::Granted(GrantedRole { role, identity })),
        Update::Issued {
            identity,
            credentials,
        },
        Update::Synced,
    ])
}

/// Sends one request on a connection of its own, as its answer ends it, and reads that.
async fn ask(address: SocketAddr, request: &str, buffer: &mut Vec<u8>) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request.as_bytes()).await?;
    buffer.clear();
    stream.read_to_end(buffer).await?;
    ensure!(
        buffer.starts_with(b"HTTP/1.1 200 OK\r\n"),
        "the agent answered {:?}",
        buffer
            .split(|byte| *byte == b'\r')
            .next()
            .map(<[u8]>::to_vec)
    );
    Ok(())
}

async fn run(requests: u64) -> Result<()> {
    let registry = Registry::new();
    let (mut projection, view) = Projection::new();
    projection.begin();
    for update in updates()? {
        projection.apply(update)?;
    }
    projection.publish();
    let listening = Listening::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listening.address()?;
    let (_sender, connection) = watch::channel(ConnectionState::Starting);
    let sources = Sources {
        clock: Arc::new(SystemTime::now),
        identify: Arc::new(OnePod),
        token_key: TokenKey::random(),
        connection,
        v1_users: V1Users::new(view.clone(), &registry)?,
        metrics: MetadataMetrics::new(&registry)?,
        view,
    };
    let service = listening.service(Settings::default(), sources);
    tokio::spawn(service.run(std::future::ready(()), CancellationToken::new()));

    let head = "Host: 169.254.169.254\r\nUser-Agent: Boto3/1.34 Botocore/1.34 Python/3.11\r\n";
    let put = format!(
        "PUT /latest/api/token HTTP/1.1\r\n{head}X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n"
    );
    let mut answer = Vec::new();
    ask(address, &put, &mut answer).await?;
    let text = String::from_utf8(answer)?;
    let (_, token) = text.split_once("\r\n\r\n").context("there is no token")?;
    let get = format!(
        "GET {LISTING}a-reader HTTP/1.1\r\n{head}X-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    let mut answer = Vec::new();
    for _ in 0..requests {
        ask(address, &get, &mut answer).await?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let requests = std::env::args().nth(1).context("how many requests?")?;
    let requests = requests.parse().context("that is no number of requests")?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(run(requests))
}
