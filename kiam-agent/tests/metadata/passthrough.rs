//! Passthrough: which routes of the node's metadata service pods reach, and what it receives.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kiam_agent::metadata::Settings;
use kiam_agent::stream::ConnectionState;
use regex::Regex;
use tokio::net::TcpListener;

use crate::service::*;

const ZONE: &str = "/latest/meta-data/placement/availability-zone";

/// A request that arrived: method, path with query, headers, bytes of the body.
type Seen = (String, String, BTreeMap<String, String>, usize);

/// The node's own service: it takes IMDSv2 only, and its newest session.
#[derive(Clone, Default)]
struct Real {
    seen: Arc<Mutex<Vec<Seen>>>,
    sessions: Arc<Mutex<usize>>,
    no_sessions: bool,
}

impl Real {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let real = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let real = real.clone();
                let service = service_fn(move |request| {
                    let real = real.clone();
                    async move { Ok::<_, Infallible>(real.answer(request).await) }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| {
            let value = value.to_str().unwrap().to_owned();
            (name.as_str().to_owned(), value)
        });
        let seen = (
            head.method.to_string(),
            head.uri.to_string(),
            headers.collect(),
            body.len(),
        );
        self.seen.lock().unwrap().push(seen);
        let answer = |status, body: &str| {
            let mut answer = Response::new(Full::from(body.to_owned()));
            *answer.status_mut() = status;
            answer
        };
        let session = format!("session-{}", self.sessions.lock().unwrap());
        let shown = head.headers.get("x-aws-ec2-metadata-token");
        match (head.method.as_str(), head.uri.path()) {
            ("PUT", "/latest/api/token") if self.no_sessions => answer(StatusCode::FORBIDDEN, ""),
            ("PUT", "/latest/api/token") => {
                *self.sessions.lock().unwrap() += 1;
                let session = format!("session-{}", self.sessions.lock().unwrap());
                answer(StatusCode::OK, &session)
            }
            _ if shown.is_none_or(|shown| shown != &session) => {
                answer(StatusCode::UNAUTHORIZED, "")
            }
            ("GET", ZONE) => {
                let mut found = answer(StatusCode::OK, "eu-west-1a");
                for (name, value) in [
                    ("content-type", "text/x-zone"),
                    ("etag", "\"1\""),
                    ("set-cookie", "a=b"),
                    ("server", "someone"),
                ] {
                    found.headers_mut().insert(name, value.parse().unwrap());
                }
                found
            }
            ("GET", "/latest/meta-data/instance-id") => answer(StatusCode::OK, "i-1"),
            ("GET", "/latest/user-data") => answer(StatusCode::OK, &"x".repeat(64 * 1024 + 1)),
            _ => answer(StatusCode::NOT_FOUND, "there is none"),
        }
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    async fn behind(&self, expression: &str) -> Service {
        let upstream = self.start().await;
        let allow_routes = Regex::new(&format!("^(?:{expression})$")).unwrap();
        let mut service = serve(Settings {
            allow_routes: Some(allow_routes),
            upstream,
            ..settings()
        })
        .await;
        service.apply(updates());
        service
    }
}

#[tokio::test]
async fn the_agent_asks_in_its_own_name_and_the_answer_is_relayed() {
    let real = Real::default();
    let service = real.behind("/latest/meta-data/.*").await;
    let request = format!(
        "GET {ZONE}?x=y HTTP/1.1\r\nHost: evil\r\nX-Forwarded-For: 10.0.0.1\r\nAuthorization: a\r\n\
         Cookie: c\r\nContent-Length: 4\r\n\r\nbody"
    );
    // A pod without a role may read as well: what is let through is everybody's.
    let answer = parse(&service.raw(pods::NO_ROLE, &request).await);
    assert_eq!((answer.status, &*answer.body), (200, "eu-west-1a"));
    assert_eq!(answer.header("content-type"), Some("text/x-zone"));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    assert_eq!(answer.header("server"), Some("EC2ws"));
    assert_eq!(answer.header("set-cookie"), None);
    let headers = |more: (&str, &str)| {
        let host = ("host".to_owned(), "169.254.169.254".to_owned());
        BTreeMap::from([host, (more.0.to_owned(), more.1.to_owned())])
    };
    let ttl = headers(("x-aws-ec2-metadata-token-ttl-seconds", "21600"));
    let token = |session| headers(("x-aws-ec2-metadata-token", session));
    let put = ("PUT".to_owned(), "/latest/api/token".to_owned(), ttl, 0);
    let get = |session| ("GET".to_owned(), ZONE.to_owned(), token(session), 0);
    assert_eq!(real.seen(), [put.clone(), get("session-1")]);

    // The session is kept, and replaced when the service has ended it.
    service.get(pods::GRANTED, ZONE).await;
    assert_eq!(real.seen(), [get("session-1")]);
    *real.sessions.lock().unwrap() += 1;
    assert_eq!(service.get(pods::GRANTED, ZONE).await.status, 200);
    assert_eq!(real.seen(), [get("session-1"), put, get("session-3")]);

    // Its refusals are relayed too.
    let missing = service.get(pods::GRANTED, "/latest/meta-data/x").await;
    assert_eq!((missing.status, &*missing.body), (404, "there is none"));
    let head = service.request(pods::GRANTED, "HEAD", ZONE).await;
    assert_eq!((head.status, &*head.body), (200, ""));
}

#[tokio::test]
async fn nothing_else_reaches_the_real_service() {
    let real = Real::default();
    let service = real.behind(".*").await;
    let info = "/latest/meta-data/iam/info/";
    for (pod, method, path, status) in [
        (pods::GRANTED, "GET", "/latest/meta-data/iam", 404),
        (
            pods::GRANTED,
            "GET",
            "/latest/meta-data/IAM/security-credentials/node",
            404,
        ),
        (
            pods::GRANTED,
            "GET",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            404,
        ),
        (pods::GRANTED, "GET", "/latest/meta-data/x/..%2fiam/y", 404),
        (pods::GRANTED, "GET", "/latest/meta-data/%2569am/y", 404),
        (pods::GRANTED, "GET", "/latest/meta-data/a;b", 404),
        (pods::GRANTED, "GET", "/ping", 200),
        (pods::GRANTED, "POST", ZONE, 405),
        (pods::GRANTED, "PUT", ZONE, 405),
        (pods::NO_POD, "GET", ZONE, 403),
        // What a pod's own role is comes from the agent.
        (pods::GRANTED, "GET", info, 200),
        (
            pods::GRANTED,
            "GET",
            "/latest/meta-data/iam/security-credentials/node",
            403,
        ),
    ] {
        let answer = service.request(pod, method, path).await;
        // For a pod there is no such path: it would be the real service's to know.
        let expected = if path == "/ping" { 404 } else { status };
        assert_eq!(answer.status, expected, "{method} {path}: {}", answer.body);
    }
    let seen = real.seen();
    let paths: Vec<_> = seen.iter().map(|(_, path, _, _)| path.as_str()).collect();
    assert_eq!(paths, ["/latest/api/token", "/ping"]);
    // Smuggled behind a body that the agent does not read on.
    let smuggled = format!(
        "GET {ZONE} HTTP/1.1\r\nHost: x\r\nContent-Length: 62\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /latest/meta-data/iam/info HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    service.raw(pods::GRANTED, &smuggled).await;
    assert!(
        real.seen()
            .iter()
            .all(|(_, path, _, _)| !path.contains("iam"))
    );
}

#[tokio::test]
async fn a_real_service_that_is_away_or_misbehaves_is_said_to_be() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let mut service = serve(Settings {
        allow_routes: Some(Regex::new("^(?:.*)$").unwrap()),
        upstream: address,
        ..settings()
    })
    .await;
    service.apply(updates());
    let answer = service.get(pods::GRANTED, ZONE).await;
    assert_eq!(answer.status, 502);
    assert!(
        answer
            .body
            .contains("the node's metadata service does not answer")
    );
    assert_eq!(
        service.metric("kiam_metadata_upstream_errors_total"),
        Some(1.0)
    );
    assert_eq!(service.get(pods::GRANTED, LISTING).await.status, 200);

    let real = Real::default();
    let service = real.behind(".*").await;
    let answer = service.get(pods::GRANTED, "/latest/user-data").await;
    assert_eq!(answer.status, 502, "{}", answer.body);

    let stingy = Real {
        no_sessions: true,
        ..Real::default()
    };
    let service = stingy.behind(".*").await;
    let answer = service.get(pods::GRANTED, ZONE).await;
    assert_eq!(answer.status, 502);
    assert!(
        answer
            .body
            .contains("refuses a session to the agent: it answers 403"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn probes_of_the_node_are_answered_and_no_others() {
    let real = Real::default();
    let service = real.behind("nothing").await;
    let node = pods::NODE;
    let ping = service.get(node, "/ping").await;
    assert_eq!((ping.status, &*ping.body), (200, "pong"));
    let health = service.get(node, "/health").await;
    assert_eq!((health.status, &*health.body), (200, "i-1"));
    let deep = service.get(node, "/health?deep=1").await;
    assert_eq!(deep.status, 500);
    assert!(deep.body.contains("it has just started"), "{}", deep.body);
    let server = SocketAddr::from(([10, 0, 0, 1], 443));
    let since = std::time::SystemTime::UNIX_EPOCH;
    service
        .connection
        .send_replace(ConnectionState::Synced { server, since });
    assert_eq!(service.get(node, "/health?deep=1").await.status, 200);
    let why = "its certificate expired".to_owned();
    service
        .connection
        .send_replace(ConnectionState::Disconnected { why, since });
    let deep = service.get(node, "/health?deep=true&x").await;
    assert!(deep.status == 500 && deep.body.contains("certificate expired"));
    assert_eq!(service.get(node, "/health?deep=").await.status, 200);

    for path in ["/ping", "/health", "/health?deep=1"] {
        assert_eq!(service.get(pods::GRANTED, path).await.status, 404, "{path}");
        assert_eq!(service.get(pods::NO_POD, path).await.status, 403, "{path}");
    }
}
