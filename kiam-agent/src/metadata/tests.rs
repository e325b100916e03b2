//! Waiting requests, with a paused clock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::StatusCode;
use http::request::Parts;
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use tokio::time::Instant;

use super::caller::Caller;
use super::*;
use crate::caller::{PodRef, Unidentified};
use crate::stream::ConnectionState;
use crate::token_key::TokenKey;
use crate::view::{Outcome, PodFacts, Projection, Update};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) fn pod(n: u8) -> PodRef {
    PodRef::Uid(PodUid::new(&format!("uid-{n}")))
}

struct Nobody;

impl Identify for Nobody {
    fn identify(&self, _peer: SocketAddr) -> Result<PodRef, Unidentified> {
        Err(Unidentified::Unattested)
    }
}

fn shared(view: View) -> Arc<Shared> {
    let registry = Registry::new();
    let sources = Sources {
        clock: Arc::new(SystemTime::now),
        identify: Arc::new(Nobody),
        token_key: TokenKey::random(),
        connection: tokio::sync::watch::channel(ConnectionState::Starting).1,
        v1_users: V1Users::new(view.clone(), &registry).unwrap(),
        metrics: MetadataMetrics::new(&registry).unwrap(),
        view,
    };
    Arc::new(Shared::new(Settings::default(), sources))
}

fn request(method: &str, path: &str) -> Parts {
    let request = http::Request::builder().method(method).uri(path);
    request.body(()).unwrap().into_parts().0
}

fn caller() -> Caller {
    Caller {
        who: Ok(pod(1)),
        source: SOURCE,
        on_node: false,
    }
}

fn no_role() -> Update {
    let facts = PodFacts {
        uid: PodUid::from("uid-1"),
        namespace: "default".into(),
        name: "web".into(),
        service_account: "web".into(),
        addresses: Box::new([SOURCE]),
        host_network: false,
        static_hash: None,
    };
    Update::Applied(facts, Outcome::NoRole)
}

const LISTING: &str = "/latest/meta-data/iam/security-credentials/";

#[tokio::test(start_paused = true)]
async fn a_request_waits_exactly_as_long_as_pod_wait() {
    let (_projection, view) = Projection::new();
    let shared = shared(view);
    let began = Instant::now();
    let answer = shared.answer(&caller(), &request("GET", LISTING)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let waited = began.elapsed();
    let (wait, slack) = (shared.settings.pod_wait, Duration::from_millis(2));
    assert!(waited >= wait && waited <= wait + slack, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_view_changes() {
    let (mut projection, view) = Projection::new();
    let shared = shared(view);
    let waiting = tokio::spawn(async move {
        let began = Instant::now();
        let answer = shared.answer(&caller(), &request("GET", LISTING)).await;
        (answer.status(), began.elapsed())
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    projection.begin();
    projection.apply(no_role()).unwrap();
    projection.publish();
    let (status, waited) = waiting.await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    // No time passes between the change and the answer.
    let change = Duration::from_millis(300);
    assert!(
        waited >= change && waited <= change + Duration::from_millis(2),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_view_cannot_change_any_more() {
    let (projection, view) = Projection::new();
    let shared = shared(view);
    drop(projection);
    let began = Instant::now();
    let answer = shared.answer(&caller(), &request("GET", LISTING)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_token_never_waits() {
    let (_projection, view) = Projection::new();
    let shared = shared(view);
    let mut put = request("PUT", "/latest/api/token");
    let ttl = http::HeaderValue::from_static("21600");
    put.headers
        .insert("x-aws-ec2-metadata-token-ttl-seconds", ttl);
    let began = Instant::now();
    let answer = shared.answer(&caller(), &put).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
