//! Connections: opened and closed by clients, and more of them than the limits allow.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiam_agent::caller::{Identify, PodRef, Unidentified};
use kiam_agent::metadata::Settings;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::service::*;

/// Sends a part of a request.
async fn begin(service: &Service, pod: u8, part: &str) -> TcpStream {
    let mut stream = service.connect(pod).await;
    stream.write_all(part.as_bytes()).await.unwrap();
    stream
}

/// Connections that have sent a part of a request, which the service has read.
async fn asking(service: &Service, pod: u8, number: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..number {
        held.push(begin(service, pod, "GET /lat").await);
    }
    settled().await;
    held
}

/// Waits until bytes that were sent over the loopback have arrived.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Waits until a pod is answered again, of which connections were closed.
async fn answered_again(service: &Service) {
    let answered = async {
        loop {
            let answer = service.raw(pods::GRANTED, &get(LISTING)).await;
            if !answer.is_empty() {
                return parse(&answer).status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(60);
    let answered = tokio::time::timeout(limit, answered).await;
    assert_eq!(answered.expect("the pod is answered again"), 200);
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[tokio::test]
async fn each_answer_ends_its_connection_like_those_of_the_real_service() {
    let service = informed().await;
    let token = service.token(pods::GRANTED).await;
    let with_token = format!("X-aws-ec2-metadata-token: {token}\r\n");
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    for (request, headers, status) in [
        (format!("GET {LISTING}"), &*with_token, 200),
        (format!("GET {LISTING}reader"), "", 200),
        (format!("HEAD {LISTING}"), "", 200),
        ("PUT /latest/api/token".to_owned(), ttl, 200),
        ("PUT /latest/api/token".to_owned(), "", 400),
        (
            format!("GET {LISTING}"),
            "X-aws-ec2-metadata-token: x\r\n",
            401,
        ),
        (format!("GET {LISTING}admin"), "", 403),
        ("GET /x".to_owned(), "", 404),
        (format!("POST {LISTING}"), "", 405),
    ] {
        let kept =
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n{headers}\r\n");
        // What follows at once is answered by nobody.
        let next = get(LISTING);
        let text = service
            .exchange(pods::GRANTED, &format!("{kept}{next}"))
            .await;
        let answer = parse(&text);
        assert_eq!(answer.status, status, "{request}: {text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{request}: {text}");
        for line in [
            "Connection: close",
            "Server: EC2ws",
            "Content-Type: text/plain",
        ] {
            let has = answer.head.lines().any(|found| found == line);
            assert!(has, "{request}: {line} in {text}");
        }
        for name in ["Content-Length: ", "Date: "] {
            assert!(
                answer.head.contains(&format!("\r\n{name}")),
                "{request}: {name} in {text}"
            );
        }
        let ttl = "\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: ";
        let has_token = status == 200 && !headers.is_empty();
        assert_eq!(answer.head.contains(ttl), has_token, "{request}: {text}");
    }
}

#[tokio::test]
async fn unusual_and_oversized_requests_are_answered_or_rejected() {
    let service = informed().await;
    let pod = pods::GRANTED;
    // HTTP/1.0 without a Host.
    let text = service
        .exchange(pod, &format!("GET {LISTING} HTTP/1.0\r\n\r\n"))
        .await;
    let answer = parse(&text);
    assert_eq!((answer.status, &*answer.body), (200, "reader"));
    // What is no request, or too much of one.
    assert_eq!(parse(&service.raw(pod, "hello\r\n\r\n").await).status, 400);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(60_000));
    let status = parse(&service.raw(pod, &long).await).status;
    assert!([414, 431].contains(&status), "{status}");
    let headers = format!("X-Y: {}\r\n", "z".repeat(1000)).repeat(60);
    let many = format!("GET {LISTING} HTTP/1.1\r\n{headers}\r\n");
    let answer = parse(&service.raw(pod, &many).await);
    assert_eq!(answer.status, 431);
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    // The service is none the worse.
    assert_eq!(service.get(pod, LISTING).await.status, 200);
}

#[tokio::test]
async fn a_body_is_read_or_rejected_and_never_taken_for_a_request() {
    let hasty = Settings {
        request_timeout: Duration::from_millis(400),
        ..settings()
    };
    let mut service = serve(hasty).await;
    service.apply(updates());
    let put =
        "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let (chunked, long) = ("Transfer-Encoding: chunked\r\n", "x".repeat(20_000));
    let smuggled = get(LISTING);
    for (headers, body, status) in [
        ("Content-Length: 5\r\n", "hello".to_owned(), 200),
        (
            "Expect: 100-continue\r\nContent-Length: 5\r\n",
            "hello".to_owned(),
            200,
        ),
        (chunked, "5\r\nhello\r\n0\r\n\r\n".to_owned(), 200),
        (chunked, "5\r\nhello\r\nx\r\n".to_owned(), 400),
        ("Content-Length: 20000\r\n", long.clone(), 413),
        (chunked, format!("4e20\r\n{long}\r\n0\r\n\r\n"), 413),
        // It never comes, or never ends.
        ("Content-Length: 5\r\n", "hell".to_owned(), 408),
        (chunked, "5\r\nhello\r\n".to_owned(), 408),
        // Whichever of the two lengths holds, what is left is no request.
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            format!("0\r\n\r\n{smuggled}"),
            200,
        ),
        ("Content-Length: 0\r\n", smuggled.clone(), 200),
    ] {
        let mut stream = begin(&service, pods::GRANTED, &format!("{put}{headers}\r\n")).await;
        // Later than the head, as some clients send it.
        settled().await;
        drop(stream.write_all(body.as_bytes()).await);
        let text = read_to_end(&mut stream).await;
        let text = text
            .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
            .unwrap_or(&text);
        let answer = parse(text);
        assert_eq!(answer.status, status, "{headers}: {text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{headers}: {text}");
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "{headers}: {text}"
        );
    }
    // A body that nobody asked for.
    let body = format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(
        parse(&service.exchange(pods::GRANTED, &body).await).status,
        200
    );
}

#[tokio::test]
async fn connections_of_a_pod_beyond_its_limit_wait_for_their_turn() {
    const CLIENTS: usize = 200;
    let few = Settings {
        max_answered_per_pod: 2,
        ..settings()
    };
    let mut service = serve(few).await;
    service.apply(updates());
    // None is answered while these are, and they are not until they end.
    let held = asking(&service, pods::GRANTED, 2).await;
    let put = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(begin(&service, pods::GRANTED, put).await);
    }
    settled().await;
    // Another pod's are not behind them.
    assert_eq!(service.get(pods::HOST_NETWORK, LISTING).await.status, 200);
    let queued = "kiam_metadata_connections_queued_total";
    assert_eq!(service.metric(queued), Some(200.0));
    drop(held);
    for mut client in clients {
        assert_eq!(parse(&read_to_end(&mut client).await).status, 200);
    }
    let refused = "kiam_metadata_connections_refused_total{limit=\"pod\"}";
    assert_eq!(service.metric(refused), None);
}

#[tokio::test]
async fn a_connection_whose_turn_does_not_come_is_closed() {
    let few = Settings {
        max_answered_per_pod: 1,
        turn_timeout: Duration::from_millis(50),
        ..settings()
    };
    let mut service = serve(few).await;
    service.apply(updates());
    let _held = asking(&service, pods::GRANTED, 1).await;
    assert_eq!(service.raw(pods::GRANTED, &get(LISTING)).await, "");
    let refused = "kiam_metadata_connections_refused_total{limit=\"waited\"}";
    assert_eq!(service.metric(refused), Some(1.0));
}

#[tokio::test]
async fn many_connections_of_one_pod_do_not_keep_others_out() {
    let few = Settings {
        max_connections_per_pod: 3,
        ..settings()
    };
    let mut service = serve(few).await;
    service.apply(updates());
    let held = asking(&service, pods::GRANTED, 3).await;
    for _ in 0..100 {
        // No answer: of a status, SDKs would conclude something.
        assert_eq!(service.raw(pods::GRANTED, &get(LISTING)).await, "");
    }
    assert_eq!(service.get(pods::HOST_NETWORK, LISTING).await.status, 200);
    let refused = "kiam_metadata_connections_refused_total{limit=\"pod\"}";
    assert_eq!(service.metric(refused), Some(100.0));
    drop(held);
    answered_again(&service).await;
}

#[tokio::test]
async fn silent_connections_are_closed_for_those_that_ask() {
    let few = Settings {
        max_connections: 4,
        max_connections_per_pod: 3,
        ..settings()
    };
    let mut service = serve(few).await;
    service.apply(updates());
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(service.connect(pods::GRANTED).await);
    }
    settled().await;
    // In its own pod, and then on the node.
    assert_eq!(service.get(pods::GRANTED, LISTING).await.status, 200);
    assert_eq!(read_to_end(&mut silent[0]).await, "");
    let _held = asking(&service, pods::FAILING, 2).await;
    assert_eq!(service.get(pods::HOST_NETWORK, LISTING).await.status, 200);
    assert_eq!(read_to_end(&mut silent[1]).await, "");
    let refused = "kiam_metadata_connections_refused_total{limit=\"silent\"}";
    assert_eq!(service.metric(refused), Some(2.0));
    silent[2].write_all(get(LISTING).as_bytes()).await.unwrap();
    assert_eq!(parse(&read_to_end(&mut silent[2]).await).status, 200);
}

#[tokio::test]
async fn all_pods_together_have_a_limit() {
    let few = Settings {
        max_connections: 2,
        ..settings()
    };
    let mut service = serve(few).await;
    service.apply(updates());
    let _first = asking(&service, pods::GRANTED, 1).await;
    let _second = asking(&service, pods::FAILING, 1).await;
    assert_eq!(service.raw(pods::HOST_NETWORK, &get(LISTING)).await, "");
    let refused = "kiam_metadata_connections_refused_total{limit=\"node\"}";
    assert_eq!(service.metric(refused), Some(1.0));
}

#[tokio::test]
async fn a_slow_or_silent_connection_is_closed() {
    let hasty = Settings {
        request_timeout: Duration::from_millis(100),
        ..settings()
    };
    let mut service = serve(hasty).await;
    service.apply(updates());
    for part in ["", "GET /lat"] {
        let mut stream = begin(&service, pods::GRANTED, part).await;
        assert_eq!(read_to_end(&mut stream).await, "");
    }
    answered_again(&service).await;
}

/// Calls of the service, in order: a peer to identify, or `None` for an empty accept queue.
#[derive(Default)]
struct Recorded(Mutex<Vec<Option<u16>>>);

impl Identify for Recorded {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
        self.0.lock().unwrap().push(Some(peer.port()));
        Ok(pod_ref(pods::GRANTED))
    }

    fn accept_queue_empty(&self, since: Instant) {
        assert!(since <= Instant::now());
        self.0.lock().unwrap().push(None);
    }
}

#[tokio::test]
async fn all_waiting_connections_are_identified_before_the_accept_queue_is_reported_empty() {
    const WAITING: usize = 100;
    let (recorded, listening) = (Arc::new(Recorded::default()), listen());
    let address = listening.address().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let socket = TcpSocket::new_v4().unwrap();
        waiting.push(socket.connect(address).await.unwrap());
    }
    let identify: Arc<dyn Identify> = Arc::<Recorded>::clone(&recorded);
    let _service = serve_by(identify, listening, settings());
    let reported = async {
        while recorded.0.lock().unwrap().last() != Some(&None) {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, reported)
        .await
        .expect("the empty queue is reported");
    let recorded = recorded.0.lock().unwrap();
    let first = recorded.iter().position(Option::is_none);
    assert_eq!(first, Some(WAITING));
}
