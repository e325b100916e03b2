//! Requests that wait, grants that end, and services that stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::caller::{Identify, PodRef, Unidentified};
use kiam_agent::metadata::Settings;
use kiam_agent::view::{Outcome, Update};
use kiam_common::pod_uid::PodUid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::service::*;

/// A limit that only ends a hang.
const HANG_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_request_waits_for_credentials_and_is_woken() {
    // Only a change of the view can end the wait within the test.
    let patient = Settings {
        pod_wait: Duration::from_secs(3600),
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
    let undecided = Outcome::Undecided {
        awaiting: "the namespace default".into(),
    };
    for update in [
        Update::Applied(facts(pods::GRANTED), undecided),
        Update::Synced,
        granted(pods::GRANTED),
    ] {
        service.apply([update]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!answered.is_finished());
    }
    service.apply([issued(pods::GRANTED, IN_2096)]);
    let answered = tokio::time::timeout(HANG_LIMIT, answered).await;
    let answer = parse(&answered.expect("it is woken").unwrap());
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("ASIAPOD2"));
    assert_eq!(
        service.metric("kiam_metadata_wait_seconds_count"),
        Some(1.0)
    );
    assert_eq!(service.metric("kiam_metadata_waits_over_total"), Some(0.0));
}

#[tokio::test]
async fn before_the_first_update_of_a_server_pods_get_service_unavailable() {
    let service = serve(settings()).await;
    let answer = service.get(pods::GRANTED, LISTING).await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("no kiam-server has answered"),
        "{answer:?}"
    );
    assert_eq!(service.metric("kiam_metadata_waits_over_total"), Some(1.0));
}

#[tokio::test]
async fn each_request_is_answered_by_the_current_view() {
    let mut service = informed().await;
    let path = format!("{LISTING}reader");
    let ask = async |service: &Service| service.get(pods::GRANTED, &path).await;
    assert_eq!(ask(&service).await.status, 200);
    service.apply([Update::Applied(facts(pods::GRANTED), Outcome::NoRole)]);
    assert_eq!(ask(&service).await.status, 404);
    // A removed pod is distinguished from an unknown one.
    service.apply([Update::Removed(PodUid::from(uid(pods::GRANTED).as_str()))]);
    let answer = ask(&service).await;
    assert_eq!(answer.status, 403);
    assert!(
        answer.body.contains("default/pod-2 was deleted"),
        "{answer:?}"
    );
    assert_eq!(service.get(pods::UNKNOWN, &path).await.status, 503);
    service.apply([granted(pods::GRANTED), issued(pods::GRANTED, IN_2096)]);
    assert_eq!(ask(&service).await.status, 200);
}

/// A client whose connection is not identified makes another one, which may be identified.
#[tokio::test]
async fn an_unidentified_connection_gets_no_final_answer() {
    struct Never(Unidentified);
    impl Identify for Never {
        fn identify(&self, _peer: SocketAddr) -> Result<PodRef, Unidentified> {
            Err(self.0.clone())
        }
    }
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    for (refusal, expected) in [
        (Unidentified::Unattested, 503),
        (Unidentified::Unknown, 503),
        (Unidentified::Gone, 503),
        (Unidentified::NotAPod, 403),
    ] {
        let service = serve_by(Arc::new(Never(refusal.clone())), listen(), settings());
        for (method, path, headers) in [
            ("GET", LISTING, ""),
            ("GET", "/latest/meta-data/iam/info", ""),
            ("GET", "/latest/user-data", ""),
            ("PUT", "/latest/api/token", ttl),
        ] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            let answer = parse(&service.exchange(pods::GRANTED, &request).await);
            assert_eq!(answer.status, expected, "{refusal:?} {path}: {answer:?}");
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
}

#[tokio::test]
async fn a_service_that_stops_answers_requests_in_flight() {
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
    service.apply([granted(pods::GRANTED)]);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).body, "reader");
    let stopped = tokio::time::timeout(HANG_LIMIT, &mut service.running).await;
    stopped.expect("it stops").unwrap();
    assert!(TcpStream::connect(service.address).await.is_err());
    drop(idle);
}
