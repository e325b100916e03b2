//! Handshakes that succeed, fail in every named way, and go on with replaced files.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Registry;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected as _;

use super::*;
use crate::flags::TlsFlags;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(dns: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    params
}

/// Writes a folder as a secret is mounted, and names its files.
fn write(
    folder: &Path,
    ca: &Authority,
    params: &CertificateParams,
    issuer: &Authority,
) -> TlsFlags {
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFlags {
        cert: file("tls.crt", cert.pem()),
        key: file("tls.key", key.serialize_pem()),
        ca: file("ca.crt", ca.pem()),
    }
}

fn server_leaf() -> CertificateParams {
    leaf("kiam-server", ExtendedKeyUsagePurpose::ServerAuth)
}

fn agent_leaf() -> CertificateParams {
    leaf("node-1.node.kiam", ExtendedKeyUsagePurpose::ClientAuth)
}

fn metrics(side: TlsSide) -> TlsMetrics {
    TlsMetrics::new(side, &Registry::new()).unwrap()
}

fn server(files: TlsFlags) -> Arc<ServerTls> {
    ServerTls::server(files, metrics(TlsSide::Server)).unwrap()
}

fn client(files: TlsFlags) -> Arc<ClientTls> {
    ClientTls::client(files, metrics(TlsSide::Client)).unwrap()
}

struct Serving {
    address: SocketAddr,
    incoming: Incoming,
    _running: tokio_util::sync::DropGuard,
}

async fn serve(tls: &Arc<ServerTls>) -> Serving {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, incoming) = Acceptor::new(listener, Arc::clone(tls));
    let stop = CancellationToken::new();
    tokio::spawn(acceptor.run(stop.clone()));
    Serving {
        address,
        incoming,
        _running: stop.drop_guard(),
    }
}

/// Performs a handshake and sends one byte; returns the error of the client, if any.
async fn handshake(serving: &mut Serving, client: &ClientTls) -> Result<PeerNames, String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let connector = tokio_rustls::TlsConnector::from(client.current());
    let stream = tokio::net::TcpStream::connect(serving.address)
        .await
        .unwrap();
    let name = ServerName::try_from("kiam-server").unwrap();
    let explained = |error: std::io::Error| explain(&error).unwrap_or_else(|| error.to_string());
    let mut ours = connector.connect(name, stream).await.map_err(explained)?;
    let accepted = async {
        let mut theirs = serving.incoming.next().await.unwrap().unwrap();
        theirs.write_all(b"!").await.unwrap();
        theirs.flush().await.unwrap();
        let names = theirs.connect_info().names;
        (theirs, names)
    };
    let mut byte = [0];
    tokio::select! {
        (_stream, names) = accepted => {
            ours.read_exact(&mut byte).await.map_err(explained)?;
            Ok(names)
        }
        read = ours.read_exact(&mut byte) => match read {
            Ok(_) => Err("received a byte before the server accepted".to_owned()),
            Err(error) => Err(explained(error)),
        },
    }
}

#[tokio::test]
async fn a_handshake_yields_the_names_of_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let mut serving = serve(&server(write(
        &folder.path().join("s"),
        &ca,
        &server_leaf(),
        &ca,
    )))
    .await;
    let client = client(write(&folder.path().join("c"), &ca, &agent_leaf(), &ca));
    let names = handshake(&mut serving, &client).await.unwrap();
    assert_eq!(names.dns, ["node-1.node.kiam"]);
}

#[tokio::test]
async fn a_failed_handshake_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (authority("ca"), authority("other"));
    let expired = |mut params: CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        params
    };
    let wrong_name = leaf("somebody-else", ExtendedKeyUsagePurpose::ServerAuth);
    let cases = [
        (
            "client of another CA",
            (&ca, server_leaf(), &ca),
            (&ca, agent_leaf(), &other),
            "rejected this side: no authority that it trusts",
        ),
        (
            "server of another CA",
            (&ca, server_leaf(), &other),
            (&ca, agent_leaf(), &ca),
            "no authority in --ca issued it",
        ),
        (
            "expired client",
            (&ca, server_leaf(), &ca),
            (&ca, expired(agent_leaf()), &ca),
            "has expired",
        ),
        (
            "expired server",
            (&ca, expired(server_leaf()), &ca),
            (&ca, agent_leaf(), &ca),
            "it has expired",
        ),
        (
            "server of another name",
            (&ca, wrong_name, &ca),
            (&ca, agent_leaf(), &ca),
            "not valid for name",
        ),
        (
            "server with a client certificate",
            (
                &ca,
                leaf("kiam-server", ExtendedKeyUsagePurpose::ClientAuth),
                &ca,
            ),
            (&ca, agent_leaf(), &ca),
            "serverAuth",
        ),
    ];
    for (at, (case, server_files, client_files, expected)) in cases.into_iter().enumerate() {
        let files = |side: &str| folder.path().join(format!("{at}-{side}"));
        let (ca, params, issuer) = server_files;
        let mut serving = serve(&server(write(&files("s"), ca, &params, issuer))).await;
        let (ca, params, issuer) = client_files;
        let client = client(write(&files("c"), ca, &params, issuer));
        let error = handshake(&mut serving, &client).await.unwrap_err();
        assert!(error.contains(expected), "{case}: {error}");
    }
}

/// In TLS 1.3 the rejection arrives after the handshake of the client: the closed connection must
/// not hide it, in any order of events.
#[tokio::test]
async fn a_rejected_client_certificate_is_always_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (authority("ca"), authority("other"));
    let server = server(write(&folder.path().join("s"), &ca, &server_leaf(), &ca));
    let serving = serve(&server).await;
    let client = client(write(&folder.path().join("c"), &ca, &agent_leaf(), &other));
    for _ in 0..50 {
        let name = ServerName::try_from("kiam-server").unwrap();
        let error = connect(serving.address, name, &client)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rejected this side: no authority that it trusts"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_reported() {
    use tokio::io::AsyncWriteExt as _;
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let client = client(write(folder.path(), &ca, &agent_leaf(), &ca));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    let name = ServerName::try_from("kiam-server").unwrap();
    let error = connect(address, name.clone(), &client)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not speak TLS") && error.contains("kiam-server"),
        "{error}"
    );

    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = connect(free, name, &client).await.unwrap_err().to_string();
    assert!(
        error.contains("refused") && error.contains(&free.to_string()),
        "{error}"
    );
}

#[test]
fn errors_name_the_unusable_file() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let good = write(&folder.path().join("good"), &ca, &agent_leaf(), &ca);
    let other = write(&folder.path().join("other"), &ca, &agent_leaf(), &ca);
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "not PEM at all").unwrap();
    let missing = folder.path().join("missing.pem");
    for (files, expected) in [
        (
            TlsFlags {
                cert: missing.clone(),
                ..good.clone()
            },
            ["certificate", "missing.pem"],
        ),
        (
            TlsFlags {
                key: missing.clone(),
                ..good.clone()
            },
            ["private key", "missing.pem"],
        ),
        (
            TlsFlags {
                ca: missing,
                ..good.clone()
            },
            ["authorities", "missing.pem"],
        ),
        (
            TlsFlags {
                cert: empty.clone(),
                ..good.clone()
            },
            ["no certificate", "empty.pem"],
        ),
        (
            TlsFlags {
                key: empty.clone(),
                ..good.clone()
            },
            ["no private key", "empty.pem"],
        ),
        (
            TlsFlags {
                ca: empty,
                ..good.clone()
            },
            ["no certificate authorities", "empty.pem"],
        ),
        (
            TlsFlags {
                key: other.key,
                ..good
            },
            ["cannot be used together", "tls.key"],
        ),
    ] {
        let error = ServerTls::server(files, metrics(TlsSide::Server))
            .unwrap_err()
            .to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[tokio::test]
async fn valid_new_files_are_used_and_invalid_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (authority("old"), authority("new"));
    // The kubelet mounts a secret as symbolic links through ..data, which it replaces.
    let mount = |version: &str, ca: &Authority, params: &CertificateParams| {
        let data = folder.path().join(version);
        write(&data, ca, params, ca);
        let link = folder.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(link, folder.path().join("..data")).unwrap();
    };
    mount("v1", &old, &server_leaf());
    let files = TlsFlags {
        cert: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
        ca: folder.path().join("ca.crt"),
    };
    for file in [&files.cert, &files.key, &files.ca] {
        let name = file.file_name().unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(name), file).unwrap();
    }
    let registry = Registry::new();
    let metrics = TlsMetrics::new(TlsSide::Server, &registry).unwrap();
    let update_error = metrics.clone();
    let tls = ServerTls::server(files.clone(), metrics).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&tls).run(stop.clone()));
    let mut serving = serve(&tls).await;
    let old_client = client(write(
        &folder.path().join("c-old"),
        &old,
        &agent_leaf(),
        &old,
    ));
    let new_client = client(write(
        &folder.path().join("c-new"),
        &new,
        &agent_leaf(),
        &new,
    ));
    handshake(&mut serving, &old_client).await.unwrap();
    let first = tls.current();

    // Without the key the old configuration stays in use, and the metric is 1.
    mount("v2", &new, &server_leaf());
    std::fs::remove_file(folder.path().join("v2/tls.key")).unwrap();
    eventually(|| update_error.has_failed()).await;
    assert!(Arc::ptr_eq(&first, &tls.current()));
    handshake(&mut serving, &old_client).await.unwrap();

    // Valid files of another authority.
    mount("v3", &new, &server_leaf());
    eventually(|| !Arc::ptr_eq(&first, &tls.current())).await;
    assert!(!update_error.has_failed());
    handshake(&mut serving, &new_client).await.unwrap();
    assert!(handshake(&mut serving, &old_client).await.is_err());
    stop.cancel();
    running.await.unwrap();
}

impl TlsMetrics {
    fn has_failed(&self) -> bool {
        self.update_error.get() == 1
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the condition did not hold within five seconds");
}
