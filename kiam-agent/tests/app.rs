//! The agent as a whole: what it does without a server, and what stops it from starting.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use kiam_agent::app::{self, BackgroundTask, Bound, Redirected, StartError};
use kiam_agent::args::Args;
use kiam_agent::caller::{Identify, PodRef, Unidentified};
use kiam_agent::token_key::TokenKey;
use kiam_common::pod_uid::PodUid;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

struct OnePod;

impl Identify for OnePod {
    fn identify(&self, _peer: SocketAddr) -> Result<PodRef, Unidentified> {
        Ok(PodRef::Uid(PodUid::new("uid-1")))
    }
}

async fn redirected(_to: SocketAddr) -> Result<Redirected, StartError> {
    Ok(Redirected {
        check: None,
        identify: Arc::new(OnePod),
        token_key: TokenKey::random(),
        guarded: true,
        tasks: vec![BackgroundTask::new("redirection", |_view, stop| {
            stop.cancelled_owned()
        })],
        metrics: Vec::new(),
        programs: None,
    })
}

/// Flags of an agent that is all right, with its files in a folder; later ones win.
fn flags(folder: &Path, more: &[&str]) -> Vec<String> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["node-1.node.kiam".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = file("tls.crt", cert.pem());
    let key = file("tls.key", key.serialize_pem());
    let mut flags: Vec<String> = [
        "kiam-agent",
        "--node-name=node-1",
        "--host=127.0.0.1",
        "--port=0",
        "--server-address=localhost:1",
        "--pod-wait=20ms",
        "--prometheus-listen-addr=127.0.0.1:0",
    ]
    .map(str::to_owned)
    .into();
    for (flag, file) in [("cert", &cert), ("key", &key), ("ca", &cert)] {
        flags.push(format!("--{flag}={file}"));
    }
    let named = |flag: &str| flag.split('=').next().unwrap().to_owned();
    let replaced: Vec<_> = more.iter().map(|flag| named(flag)).collect();
    flags.retain(|flag| !replaced.contains(&named(flag)));
    flags.extend(more.iter().map(|&flag| flag.to_owned()));
    flags
}

async fn build(folder: &Path, more: &[&str]) -> Result<Bound, StartError> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let args = Args::try_parse_from(flags(folder, more)).unwrap();
    app::build_with(&args, redirected).await
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
async fn without_a_server_it_runs_and_says_that_it_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let bound = build(folder.path(), &[]).await.unwrap();
    let (metadata, admin) = (bound.metadata, bound.admin.unwrap());
    let stop = CancellationToken::new();
    let running = tokio::spawn(bound.run(stop.clone().cancelled_owned()));

    assert!(get(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    let unready = get(admin, "/readyz").await;
    assert!(
        unready.contains("the first snapshot of the node's pods"),
        "{unready}"
    );
    let answer = get(metadata, "/latest/meta-data/iam/security-credentials/").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let counted = async {
        let line = "kiam_node_stream_ends_total{reason=\"connect\"}";
        while !get(admin, "/metrics").await.contains(line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, counted).await.unwrap();
    let metrics = get(admin, "/metrics").await;
    for name in [
        "kiam_metadata_responses_total{code=\"503\",handler=\"roleName\"} 1",
        "kiam_node_stream_synced 0",
        "grpc_client_tls_certificate_expiry_seconds",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    stop.cancel();
    let limit = Duration::from_secs(3);
    let stopped = tokio::time::timeout(limit, running).await.unwrap();
    stopped.unwrap().unwrap();
    // A process that another test starts may hold the socket for a moment more.
    let refused = async { while TcpStream::connect(metadata).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), refused)
        .await
        .unwrap();
}

#[tokio::test]
async fn its_commands_tell_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let bound = build(folder.path(), &[]).await.unwrap();
    let admin = bound.admin.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(bound.run(stop.clone().cancelled_owned()));
    let run = async |words: &'static [&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiam-agent"));
        let command = command.args(words).arg(format!("--address={admin}"));
        let output = command.output().await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    // No server tells this one anything.
    let (code, said) = run(&["status"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("on node-1") && said.contains("Pods: 0;"),
        "{said}"
    );
    let (_, said) = run(&["status", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["node"], "node-1");
    assert_eq!(run(&["health"]).await, (Some(0), "ok\n".to_owned()));
    let (code, said) = run(&["health", "--ready"]).await;
    assert!(
        code == Some(1) && said.contains("awaiting the first snapshot"),
        "{said}"
    );
    stop.cancel();
    running.await.unwrap().unwrap();
    let (code, said) = run(&["status"]).await;
    assert!(
        code == Some(1) && said.contains("is the agent running"),
        "{said}"
    );
}

#[tokio::test]
async fn what_it_cannot_be_without_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap();
    let port = format!("--port={}", taken.port());
    let admin = format!("--prometheus-listen-addr={taken}");
    for (flag, expected, usage) in [
        (port.as_str(), "cannot listen for pods on 127.0.0.1", false),
        (admin.as_str(), "--prometheus-listen-addr", false),
        // Of the documentation's, and so nobody's.
        (
            "--host=192.0.2.1",
            "set --host to an address of this node",
            true,
        ),
        ("--cert=/nonexistent/tls.crt", "/nonexistent/tls.crt", true),
    ] {
        let error = build(folder.path(), &[flag]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{flag}: {text}");
        assert_eq!(error.is_usage(), usage, "{flag}: {text}");
    }
    drop(holder);
}

#[tokio::test]
async fn nobody_is_redirected_to_an_agent_that_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let flags = flags(folder.path(), &["--host=192.0.2.1"]);
    let args = Args::try_parse_from(flags).unwrap();
    let unreached = async |_| -> Result<Redirected, StartError> { panic!("redirected") };
    app::build_with(&args, unreached).await.unwrap_err();
}

#[tokio::test]
async fn the_end_of_a_background_task_ends_the_agent_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let args = Args::try_parse_from(flags(folder.path(), &[])).unwrap();
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let bound = app::build_with(&args, async |address| {
        let mut redirected = redirected(address).await?;
        let task = BackgroundTask::new("kernel log", |_view, _stop| async {});
        redirected.tasks.push(task);
        Ok(redirected)
    });
    let running = bound.await.unwrap().run(std::future::pending());
    let limit = Duration::from_secs(5);
    let ended = tokio::time::timeout(limit, running).await.unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("\"kernel log\""), "{error}");
}

#[test]
fn bad_configuration_exits_64_with_a_line_that_says_which() {
    let folder = tempfile::tempdir().unwrap();
    for (flag, expected) in [
        ("--server-address=kiam-server", "has no port"),
        ("--pod-wait=soon", "invalid duration"),
        ("--level=much,,=", "invalid log level"),
        ("--no-such-flag=x", "--no-such-flag"),
        ("--cert=/nonexistent/tls.crt", "/nonexistent/tls.crt"),
    ] {
        let run = Command::new(env!("CARGO_BIN_EXE_kiam-agent"))
            .args(&flags(folder.path(), &[flag])[1..])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(64), "{flag}: {text}");
        assert!(text.contains(expected), "{flag}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_kiam-agent"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(text.contains("--server-address <HOST:PORT>"), "{text}");
}
