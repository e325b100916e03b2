use std::time::Duration;

use http_body_util::BodyExt as _;
use kiam_common::admin::PageRequest;
use kiam_common::metrics::Registry;
use kiam_common::role::RoleArn;
use serde_json::Value;
use tokio::sync::Notify;

use super::*;
use crate::cluster::object::{Annotations, Namespace, Pod};
use crate::credentials::IssueErrorKind;
use crate::node::StreamMetrics;
use crate::permitted::{Anchoring, Permitted};
use crate::testing::{HOUR, PLENTY, TestClock, TestIssuer, pod, settings, store};

const HOSTILE: &str = "<script>alert('1')</script>\"&\u{1b}[31m";

struct Fixture {
    cluster: Arc<Cluster>,
    store: Arc<Store>,
    streams: Streams,
    issuer: TestIssuer,
    page: Page,
}

impl Fixture {
    fn new() -> Self {
        let clock = TestClock::new();
        let issuer = TestIssuer::new(&clock);
        let store = Arc::new(store(&issuer, &clock, PLENTY));
        let cluster = Arc::new(Cluster::new());
        let streams = Streams::new(&StreamMetrics::new(&Registry::new()).unwrap());
        let status = Status::new(
            Arc::clone(&cluster),
            Arc::clone(&store),
            Arc::new(settings()),
            streams.clone(),
            Arc::new(clock),
        );
        Self {
            cluster,
            store,
            streams,
            issuer,
            page: status.page(),
        }
    }

    async fn get(&self, path: &str) -> String {
        let answer = (self.page)(PageRequest { path, local: false }).unwrap();
        let policy = &answer.headers()[http::header::CONTENT_SECURITY_POLICY];
        assert!(policy.to_str().unwrap().starts_with("default-src 'none'"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    async fn json(&self) -> Value {
        serde_json::from_str(&self.get("/status").await).unwrap()
    }
}

fn identity(role: &str) -> Arc<Identity> {
    Arc::new(Identity {
        role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{role}")).unwrap(),
        session_name: "kiam-kiam".to_owned(),
        external_id: Some("hush-external".into()),
        duration: HOUR,
        tags: Vec::new(),
        source_identity: None,
    })
}

fn asking(uid: &str, name: &str, role: &str) -> Pod {
    let annotations = Annotations {
        role: Some(role.into()),
        external_id: Some("hush-external".into()),
        ..Annotations::default()
    };
    Pod {
        annotations: annotations.boxed(),
        ..pod(uid, "web", name, "node-1")
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_lists_nodes_identities_and_refused_pods_without_secrets() {
    let fixture = Fixture::new();
    let node = |name: &str| name.parse().unwrap();
    let _guarded = fixture.streams.open(&node("node-1"), "1.0", true).unwrap();
    let _open = fixture
        .streams
        .open(&node("node-2"), HOSTILE, false)
        .unwrap();
    let web = Namespace {
        name: "web".into(),
        permitted: Permitted::compile(Some(".*/reader"), Anchoring::Whole),
    };
    fixture.cluster.apply(web.into());
    for (uid, name, role) in [
        ("1", "fine", "reader"),
        ("2", HOSTILE, "writer"),
        ("3", "odd", HOSTILE),
    ] {
        fixture.cluster.apply(asking(uid, name, role).into());
    }
    let signal = Arc::new(Notify::new());
    let _reader = fixture
        .store
        .lease(&identity("reader"), Arc::clone(&signal));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let denied = Err(IssueErrorKind::AccessDenied);
    fixture.issuer.behave(Duration::ZERO, denied);
    let _broken = fixture
        .store
        .lease(&identity("broken"), Arc::clone(&signal));
    tokio::time::sleep(Duration::from_millis(100)).await;

    let json = fixture.json().await;
    let nodes = &json["nodes"];
    assert_eq!(
        (&nodes["attached"], &nodes["unguarded"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        nodes["listed"][0]["node"], "node-2",
        "unguarded nodes come first"
    );
    assert_eq!(nodes["listed"][1]["stream_age_seconds"], 60);
    let identities = &json["identities"];
    assert_eq!(
        (&identities["held"], &identities["failing"]),
        (&2.into(), &1.into())
    );
    let (broken, reader) = (&identities["listed"][0], &identities["listed"][1]);
    assert_eq!(broken["failure"]["kind"], "access_denied");
    assert_eq!(broken["failure"]["error"], "test error: access_denied");
    assert_eq!(broken["expires_in_seconds"], Value::Null);
    assert_eq!(
        (&reader["age_seconds"], &reader["failure"]),
        (&60.into(), &Value::Null)
    );
    assert_eq!(reader["expires_in_seconds"], 3539);
    let pods = &json["pods"];
    assert_eq!(
        (&pods["granted"], &pods["forbidden"]),
        (&1.into(), &2.into())
    );

    let page = fixture.get("/status.html").await;
    assert!(
        !page.contains("<script") && !page.contains('\u{1b}'),
        "{page}"
    );
    assert!(page.contains("web/&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
    for part in [
        "role/broken",
        "does not permit",
        "does not name a role",
        "NO",
        "58m59s",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for (text, of) in [(page, "page"), (json.to_string(), "JSON")] {
        for secret in ["hush", "ASIA", "secret", "token"] {
            assert!(!text.contains(secret), "{secret} in the {of}");
        }
    }
    let (path, local) = ("/statusx", false);
    assert!((fixture.page)(PageRequest { path, local }).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_status_is_bounded_and_has_the_total_numbers() {
    let fixture = Fixture::new();
    let slots: Vec<_> = (0..1000)
        .map(|n| {
            let node = format!("node-{n}").parse().unwrap();
            fixture.streams.open(&node, &"v".repeat(1000), n % 2 == 0)
        })
        .collect();
    assert!(slots.iter().all(Option::is_some));
    for n in 0..1000 {
        let pod = asking(&n.to_string(), &"p".repeat(2000), &"r".repeat(2000));
        fixture.cluster.apply(pod.into());
    }
    let signal = Arc::new(Notify::new());
    let leases: Vec<_> = (0..1000)
        .map(|n| {
            let identity = identity(&format!("r{n}"));
            fixture.store.lease(&identity, Arc::clone(&signal))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let json = fixture.json().await;
    for (part, count, total) in [
        ("nodes", "attached", 1000),
        ("identities", "held", leases.len()),
        ("pods", "examined", 1000),
    ] {
        assert_eq!(json[part][count], total, "{part}");
        assert_eq!(json[part]["listed"].as_array().unwrap().len(), MAX_LISTED);
    }
    assert!(fixture.get("/status").await.len() < 512 * 1024);
    assert!(fixture.get("/status.html").await.len() < 512 * 1024);
}
