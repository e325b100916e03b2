//! Allocations of a request on a new connection: those of hyper, and a fixed number of the agent's
//! own, which belong to the connection.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::service::{Answer, IN_2096, LISTING, informed, issued, parse, pods};

const REQUESTS: u64 = 1000;
/// Buffers grow until then, and what is made once is made.
const BEFORE: u64 = 100;
/// Ours for each connection: who is calling (the test's own telling included), whose room it takes, whose
/// turn it is. No more by a request's headers, path or answer.
const OURS: u64 = 11;
/// For the clock: the date once a second, a timer's wheel. Far below one for each request.
const BY_TIME: u64 = REQUESTS / 50;

/// One thread, so that what is counted there is all that serves.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// One request on a connection of its own, and its answer.
fn ask(to: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, pods::GRANTED), 0));
    stream.bind(&from.into()).unwrap();
    stream.connect(&to.into()).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Returns the number of allocations of this thread while its runtime serves the requests of
/// another, and their answer.
fn count(runtime: &Runtime, to: SocketAddr, request: String) -> (u64, Answer) {
    let (warm, is_warm) = oneshot::channel();
    let (go, may_go) = sync_channel::<()>(1);
    let (done, is_done) = oneshot::channel();
    let client = std::thread::spawn(move || {
        let times = |times| {
            let all = (0..times).map(|_| ask(to, request.as_bytes()));
            all.fold(None, |_, answer| Some(answer)).unwrap()
        };
        times(BEFORE);
        warm.send(()).unwrap();
        may_go.recv().unwrap();
        let answer = times(REQUESTS);
        done.send(()).unwrap();
        String::from_utf8(answer).unwrap()
    });
    runtime.block_on(is_warm).unwrap();
    let counted = measure(|| {
        go.send(()).unwrap();
        runtime.block_on(is_done).unwrap();
    });
    let answer = parse(&client.join().unwrap());
    assert_eq!(answer.status, 200, "{answer:?}");
    (counted.count_total, answer)
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
}

/// hyper alone, as the agent sets it up, with an answer that is given; `more` is done each time.
fn bare(answer: &Answer, request: String, more: fn()) -> u64 {
    let mut headers = HeaderMap::new();
    for line in answer.head.lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        // hyper's own.
        if !["Date", "Content-Length"].contains(&name) {
            let name: HeaderName = name.parse().unwrap();
            // As ours are: known when the program was built.
            let value = HeaderValue::from_static(String::leak(value.to_owned()));
            headers.insert(name, value);
        }
    }
    let body = Bytes::from(answer.body.clone());
    let runtime = runtime();
    let answering = move || {
        let mut answer = Response::new(Full::new(body.clone()));
        for (name, value) in &headers {
            answer.headers_mut().insert(name, value.clone());
        }
        answer
    };
    let answering = Arc::new(answering);
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let listener = listener.unwrap();
    let to = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (accepted, _) = listener.accept().await.unwrap();
            let answering = Arc::clone(&answering);
            let service = service_fn(move |_request| {
                more();
                std::future::ready(Ok::<_, Infallible>(answering()))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .title_case_headers(true)
                .half_close(true)
                .keep_alive(false)
                .serve_connection(TokioIo::new(accepted), service);
            tokio::spawn(connection);
        }
    });
    count(&runtime, to, request).0
}

#[test]
fn a_request_allocates_nothing_of_ours_but_its_connection() {
    let runtime = runtime();
    let (service, token) = runtime.block_on(async {
        let mut service = informed().await;
        service.apply([issued(pods::GRANTED, IN_2096)]);
        let token = service.token(pods::GRANTED).await;
        (service, token)
    });
    let token = format!("X-aws-ec2-metadata-token: {token}\r\n");
    let sdk = "User-Agent: Boto3/1.34 Botocore/1.34 Python/3.11\r\n";
    for (what, path, headers) in [
        ("the role, by IMDSv2", LISTING.to_owned(), &*token),
        ("credentials, by IMDSv2", format!("{LISTING}reader"), &token),
        ("credentials, by IMDSv1", format!("{LISTING}reader"), sdk),
    ] {
        let request = get(&path, headers);
        let (ours, answer) = count(&runtime, service.address, request.clone());
        let hyper = bare(&answer, request, || {});
        println!("{what}: {ours}, hyper alone {hyper}, of {REQUESTS} requests");
        assert!(
            ours <= hyper + OURS * REQUESTS + BY_TIME,
            "{what}: {ours} allocations, hyper alone makes {hyper}, of {REQUESTS} requests"
        );
    }
}

#[test]
fn an_allocation_for_each_request_would_be_seen() {
    let answer = parse("HTTP/1.1 200 OK\r\nServer: EC2ws\r\n\r\nreader");
    let none = bare(&answer, get(LISTING, ""), || {});
    let one = bare(&answer, get(LISTING, ""), || drop(Box::new(1_u8)));
    assert!(one + BY_TIME >= none + REQUESTS, "{one} and {none}");
}
