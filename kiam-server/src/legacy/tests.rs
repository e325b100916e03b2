//! The three calls, as kiam's own tests and its agents' code have them.

use std::sync::Arc;
use std::time::Duration;

use kiam_common::api::legacy::kiam_service_server::KiamService as _;
use kiam_common::api::legacy::{GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest};
use prost::Message as _;
use tonic::{Code, Request};

use super::{Holds, LegacyService};
use crate::cluster::Cluster;
use crate::cluster::object::{Annotations, Namespace, Pod};
use crate::credentials::{IssueErrorKind, Store};
use crate::permitted::{Anchoring, Permitted};
use crate::testing::{HOUR, PLENTY, TestClock, TestIssuer, pod, settings, store};

struct Stage {
    service: LegacyService,
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    issuer: TestIssuer,
}

fn stage() -> Stage {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = Arc::new(store(&issuer, &clock, PLENTY));
    let cluster = Arc::new(Cluster::new());
    let holds = Holds::new(Arc::clone(&store), HOUR);
    let service = LegacyService::new(
        Arc::clone(&cluster),
        Arc::new(settings()),
        holds,
        Arc::new(clock),
    );
    let web = Namespace {
        name: "web".into(),
        permitted: Permitted::compile(Some(".*/team/.*|.*:role/reader"), Anchoring::Whole),
    };
    cluster.apply(web.into());
    for (number, namespace, role) in [
        (1, "web", Some("reader")),
        (2, "web", None),
        (3, "web", Some("writer")),
        (4, "unknown", Some("reader")),
        (5, "web", Some("/team/nested")),
        (6, "web", Some("arn:broken")),
    ] {
        cluster.apply(at(number, namespace, role).into());
    }
    Stage {
        service,
        cluster,
        store,
        issuer,
    }
}

fn at(number: u8, namespace: &str, role: Option<&str>) -> Pod {
    let uid = format!("uid-{number}");
    let mut pod = pod(&uid, namespace, &uid, "node-1");
    pod.addresses = Box::new([format!("10.0.0.{number}").parse().unwrap()]);
    pod.annotations = Annotations {
        role: role.map(Into::into),
        ..Annotations::default()
    }
    .boxed();
    pod
}

impl Stage {
    async fn role(&self, ip: &str) -> Result<String, String> {
        let request = GetPodRoleRequest { ip: ip.to_owned() };
        let answer = self.service.get_pod_role(Request::new(request)).await;
        answer.map(|role| role.into_inner().name).map_err(said)
    }

    async fn credentials(&self, ip: &str, role: &str) -> Result<String, String> {
        let request = GetPodCredentialsRequest {
            ip: ip.to_owned(),
            role: role.to_owned(),
        };
        let answer = self.service.get_pod_credentials(Request::new(request));
        let answer = answer.await.map_err(said)?;
        Ok(answer.get_ref().access_key_id.clone())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn said(status: tonic::Status) -> String {
    assert_eq!(status.code(), Code::Unknown, "{status}");
    status.message().to_owned()
}

#[tokio::test(start_paused = true)]
async fn roles_are_told_as_annotated_and_by_no_policy() {
    let stage = stage();
    for (ip, expected) in [
        ("10.0.0.1", Ok("reader")),
        ("10.0.0.2", Ok("")),
        ("10.0.0.3", Ok("writer")),
        ("10.0.0.5", Ok("/team/nested")),
        ("10.0.0.9", Err("pod not found")),
        ("not an address", Err("pod not found")),
        ("", Err("pod not found")),
    ] {
        let found = stage.role(ip).await;
        let found = found.as_deref().map_err(String::as_str);
        assert_eq!(found, expected, "{ip}");
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_are_given_by_the_policies_alone() {
    let stage = stage();
    for (ip, role, expected) in [
        ("10.0.0.1", "reader", Ok("ASIA1/reader")),
        ("10.0.0.1", "/reader", Ok("ASIA1/reader")),
        (
            "10.0.0.1",
            "arn:aws:iam::123456789012:role/reader",
            Ok("ASIA1/reader"),
        ),
        ("10.0.0.5", "/team/nested", Ok("ASIA2/nested")),
        ("10.0.0.5", "team/nested", Ok("ASIA2/nested")),
        ("10.0.0.5", "nested", Ok("ASIA2/nested")),
        ("10.0.0.1", "writer", Err("forbidden by policy")),
        ("10.0.0.1", "", Err("role can't be empty")),
        ("10.0.0.2", "reader", Err("role can't be empty")),
        ("10.0.0.3", "writer", Err("forbidden by policy")),
        ("10.0.0.6", "arn:broken", Err("forbidden by policy")),
        (
            "10.0.0.4",
            "reader",
            Err("namespace unknown is not known yet; try again"),
        ),
        ("10.0.0.9", "reader", Err("no pod found")),
    ] {
        let found = stage.credentials(ip, role).await;
        let found = found.as_deref().map_err(String::as_str);
        assert_eq!(found, expected, "{ip} {role}");
    }
    assert_eq!(stage.issuer.calls(), 2, "one call for each identity");
}

#[tokio::test(start_paused = true)]
async fn sts_s_own_words_are_handed_on_and_slow_answers_are_not_waited_for() {
    let stage = stage();
    let denied = IssueErrorKind::AccessDenied;
    stage.issuer.behave(Duration::ZERO, Err(denied));
    let error = stage.credentials("10.0.0.1", "reader").await.unwrap_err();
    assert_eq!(error, "told to: access_denied");
    stage.issuer.behave(Duration::from_secs(14), Ok(HOUR));
    let error = stage.credentials("10.0.0.5", "nested").await;
    assert_eq!(error.unwrap_err(), "STS has not answered within 10 s");
    // The call goes on, and the agent's next try finds what it brought.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let calls = stage.issuer.calls();
    assert!(stage.credentials("10.0.0.5", "nested").await.is_ok());
    assert_eq!(stage.issuer.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn identities_are_kept_fresh_while_asked_for_and_let_go_of_then() {
    let stage = stage();
    stage.credentials("10.0.0.1", "reader").await.unwrap();
    tokio::time::sleep(HOUR * 3 / 4).await;
    assert_eq!(stage.issuer.calls(), 2, "renewed before its end");
    stage.credentials("10.0.0.1", "reader").await.unwrap();
    tokio::time::sleep(HOUR * 9 / 10).await;
    assert!(!stage.store.is_empty(), "asked for less than an hour ago");
    // Nobody asks any more; the store itself keeps an unread entry a minute.
    tokio::time::sleep(HOUR / 5).await;
    assert!(stage.store.is_empty());
    let calls = stage.issuer.calls();
    tokio::time::sleep(HOUR * 5).await;
    assert_eq!(stage.issuer.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_newer_pod_has_the_address_and_what_was_granted_to_the_older_is_not_its() {
    let stage = stage();
    stage.credentials("10.0.0.1", "reader").await.unwrap();
    let mut newer = at(7, "web", None);
    newer.addresses = Box::new(["10.0.0.1".parse().unwrap()]);
    newer.created = 1;
    stage.cluster.apply(newer.into());
    assert_eq!(stage.role("10.0.0.1").await.unwrap(), "");
    let error = stage.credentials("10.0.0.1", "reader").await.unwrap_err();
    assert_eq!(error, "role can't be empty");
}

#[tokio::test(start_paused = true)]
async fn messages_are_kiam_s_to_the_byte() {
    let stage = stage();
    let request = GetPodRoleRequest {
        ip: "10.0.0.1".to_owned(),
    };
    assert_eq!(request.encode_to_vec(), b"\x0a\x0810.0.0.1");
    let role = stage.service.get_pod_role(Request::new(request)).await;
    assert_eq!(
        role.unwrap().into_inner().encode_to_vec(),
        b"\x0a\x06reader"
    );
    let request = GetPodCredentialsRequest {
        ip: "10.0.0.1".to_owned(),
        role: "reader".to_owned(),
    };
    let encoded = request.encode_to_vec();
    assert_eq!(encoded, b"\x0a\x0810.0.0.1\x12\x06reader");
    let answer = stage.service.get_pod_credentials(Request::new(request));
    let encoded = answer.await.unwrap().into_inner().encode_to_vec();
    let expected = [
        (1, "Success"),
        (2, "AWS-HMAC"),
        (3, "ASIA1/reader"),
        (4, "secret"),
        (5, "token"),
        (6, "2027-01-15T09:00:00Z"),
        (7, "2027-01-15T08:00:00Z"),
    ];
    let expected: Vec<u8> = expected
        .into_iter()
        .flat_map(|(number, text): (u8, &str)| {
            // A field of the wire type LEN: its number, its length, its text.
            let head = [number << 3 | 2, u8::try_from(text.len()).unwrap()];
            [&head, text.as_bytes()].concat()
        })
        .collect();
    assert_eq!(encoded, expected);
    let health = stage.service.get_health(Request::new(GetHealthRequest {}));
    assert_eq!(
        health.await.unwrap().into_inner().encode_to_vec(),
        b"\x0a\x02ok"
    );
}
