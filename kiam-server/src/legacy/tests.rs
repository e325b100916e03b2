//! The three calls, according to the tests of kiam and the code of its agents.

use std::sync::Arc;
use std::time::Duration;

use kiam_common::api::legacy::kiam_service_server::KiamService as _;
use kiam_common::api::legacy::{GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest};
use prost::Message as _;
use tonic::{Code, Request};

use super::{Leases, LegacyService};
use crate::cluster::Cluster;
use crate::cluster::object::{Annotations, Namespace, Pod};
use crate::credentials::{IssueErrorKind, Store};
use crate::permitted::{Anchoring, Permitted};
use crate::testing::{HOUR, PLENTY, TestClock, TestIssuer, pod, settings, store};

struct Fixture {
    service: LegacyService,
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    issuer: TestIssuer,
}

fn fixture() -> Fixture {
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock);
    let store = Arc::new(store(&issuer, &clock, PLENTY));
    let cluster = Arc::new(Cluster::new());
    let leases = Leases::new(Arc::clone(&store), HOUR);
    let service = LegacyService::new(
        Arc::clone(&cluster),
        Arc::new(settings()),
        leases,
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
    Fixture {
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

impl Fixture {
    async fn role(&self, ip: &str) -> Result<String, String> {
        let request = GetPodRoleRequest { ip: ip.to_owned() };
        let answer = self.service.get_pod_role(Request::new(request)).await;
        answer.map(|role| role.into_inner().name).map_err(text)
    }

    async fn credentials(&self, ip: &str, role: &str) -> Result<String, String> {
        let request = GetPodCredentialsRequest {
            ip: ip.to_owned(),
            role: role.to_owned(),
        };
        let answer = self.service.get_pod_credentials(Request::new(request));
        let answer = answer.await.map_err(text)?;
        Ok(answer.get_ref().access_key_id.clone())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes a value")]
fn text(status: tonic::Status) -> String {
    assert_eq!(status.code(), Code::Unknown, "{status}");
    status.message().to_owned()
}

#[tokio::test(start_paused = true)]
async fn roles_are_returned_as_annotated_regardless_of_policies() {
    let fixture = fixture();
    for (ip, expected) in [
        ("10.0.0.1", Ok("reader")),
        ("10.0.0.2", Ok("")),
        ("10.0.0.3", Ok("writer")),
        ("10.0.0.5", Ok("/team/nested")),
        ("10.0.0.9", Err("pod not found")),
        ("not an address", Err("pod not found")),
        ("", Err("pod not found")),
    ] {
        let found = fixture.role(ip).await;
        let found = found.as_deref().map_err(String::as_str);
        assert_eq!(found, expected, "{ip}");
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_are_returned_only_if_the_policies_permit_the_role() {
    let fixture = fixture();
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
            Err("namespace unknown is not known yet; retry"),
        ),
        ("10.0.0.9", "reader", Err("no pod found")),
    ] {
        let found = fixture.credentials(ip, role).await;
        let found = found.as_deref().map_err(String::as_str);
        assert_eq!(found, expected, "{ip} {role}");
    }
    assert_eq!(fixture.issuer.calls(), 2, "one call for each identity");
}

#[tokio::test(start_paused = true)]
async fn errors_of_sts_are_passed_on_and_slow_answers_time_out() {
    let fixture = fixture();
    let denied = IssueErrorKind::AccessDenied;
    fixture.issuer.behave(Duration::ZERO, Err(denied));
    let error = fixture.credentials("10.0.0.1", "reader").await.unwrap_err();
    assert_eq!(error, "test error: access_denied");
    fixture.issuer.behave(Duration::from_secs(14), Ok(HOUR));
    let error = fixture.credentials("10.0.0.5", "nested").await;
    assert_eq!(error.unwrap_err(), "STS did not respond within 10 s");
    // The call continues, and a retry of the agent finds its result.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let calls = fixture.issuer.calls();
    assert!(fixture.credentials("10.0.0.5", "nested").await.is_ok());
    assert_eq!(fixture.issuer.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn identities_are_refreshed_while_they_are_requested() {
    let fixture = fixture();
    fixture.credentials("10.0.0.1", "reader").await.unwrap();
    tokio::time::sleep(HOUR * 3 / 4).await;
    assert_eq!(fixture.issuer.calls(), 2, "renewed before the expiration");
    fixture.credentials("10.0.0.1", "reader").await.unwrap();
    tokio::time::sleep(HOUR * 9 / 10).await;
    assert!(!fixture.store.is_empty(), "requested less than an hour ago");
    // The lease has ended, and with it, after a minute, the entry in the store.
    tokio::time::sleep(HOUR / 5).await;
    assert!(fixture.store.is_empty());
    let calls = fixture.issuer.calls();
    tokio::time::sleep(HOUR * 5).await;
    assert_eq!(fixture.issuer.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_newer_pod_with_the_address_does_not_get_the_role_of_the_older_one() {
    let fixture = fixture();
    fixture.credentials("10.0.0.1", "reader").await.unwrap();
    let mut newer = at(7, "web", None);
    newer.addresses = Box::new(["10.0.0.1".parse().unwrap()]);
    newer.created = 1;
    fixture.cluster.apply(newer.into());
    assert_eq!(fixture.role("10.0.0.1").await.unwrap(), "");
    let error = fixture.credentials("10.0.0.1", "reader").await.unwrap_err();
    assert_eq!(error, "role can't be empty");
}

#[tokio::test(start_paused = true)]
async fn messages_equal_those_of_kiam_to_the_byte() {
    let fixture = fixture();
    let request = GetPodRoleRequest {
        ip: "10.0.0.1".to_owned(),
    };
    assert_eq!(request.encode_to_vec(), b"\x0a\x0810.0.0.1");
    let role = fixture.service.get_pod_role(Request::new(request)).await;
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
    let answer = fixture.service.get_pod_credentials(Request::new(request));
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
            // A field of wire type LEN: number, length, text.
            let head = [number << 3 | 2, u8::try_from(text.len()).unwrap()];
            [&head, text.as_bytes()].concat()
        })
        .collect();
    assert_eq!(encoded, expected);
    let health = fixture
        .service
        .get_health(Request::new(GetHealthRequest {}));
    assert_eq!(
        health.await.unwrap().into_inner().encode_to_vec(),
        b"\x0a\x02ok"
    );
}
