//! HTTP as clients speak it, and more of it than is good.

use std::time::Duration;

use kiam_agent::metadata::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::service::*;

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
