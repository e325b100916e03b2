//! Reviews of tokens of every kind, and their cache.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_common::metrics::Registry;
use serde_json::{Value, json};

use super::agent_pod::AgentPod;
use super::cache::{Key, MAX_TOKENS, TokenCache};
use super::*;
use crate::clock::Clock as _;
use crate::cluster::Cluster;
use crate::cluster::object::{Annotations, ObjectKey};
use crate::testing::api::{ApiMode, FakeApi};
use crate::testing::{TestClock, pod};

const MINUTE: Duration = Duration::from_secs(60);

/// Reviews with a configurable result, which are counted.
struct Reviews {
    result: Mutex<Result<Reviewed, ReviewError>>,
    count: AtomicUsize,
}

#[async_trait]
impl TokenReviews for Reviews {
    async fn review(&self, _token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        assert_eq!(audience, "kiam-server");
        self.count.fetch_add(1, Ordering::SeqCst);
        let result = self.result.lock().unwrap().clone();
        if result == Err(ReviewError::Unavailable("hangs".to_owned())) {
            std::future::pending::<()>().await;
        }
        result
    }
}

struct Fixture {
    cluster: Arc<Cluster>,
    clock: TestClock,
    reviews: Arc<Reviews>,
    registry: Registry,
    proof: NodeProof,
}

impl Fixture {
    fn new() -> Self {
        let cluster = Arc::new(Cluster::new());
        cluster.apply(pod("agent-1", "kube-system", "kiam-agent-x", "node-1").into());
        Self::with(cluster, Ok(agent()))
    }

    fn with(cluster: Arc<Cluster>, result: Result<Reviewed, ReviewError>) -> Self {
        let clock = TestClock::new();
        let reviews = Arc::new(Reviews {
            result: Mutex::new(result),
            count: AtomicUsize::new(0),
        });
        let registry = Registry::new();
        let proof = TokenProof::new(
            Arc::clone(&reviews) as Arc<dyn TokenReviews>,
            Arc::clone(&cluster),
            "kiam-server".to_owned(),
            ("kube-system", "kiam-agent"),
            Arc::new(clock.clone()),
            ReviewMetrics::new(&registry).unwrap(),
        );
        Self {
            cluster,
            clock,
            reviews,
            registry,
            proof: NodeProof::Token(Arc::new(proof)),
        }
    }

    async fn ask(&self, node: &str, token: &str) -> Result<Proved, ProofError> {
        let evidence = Evidence {
            token: Some(token),
            ..Evidence::default()
        };
        self.proof.check(&node.parse().unwrap(), evidence).await
    }

    fn set_result(&self, result: Result<Reviewed, ReviewError>) {
        *self.reviews.result.lock().unwrap() = result;
    }

    /// Returns the number of reviews.
    fn reviews(&self) -> usize {
        self.reviews.count.load(Ordering::SeqCst)
    }

    /// Returns a token with a remaining lifetime.
    fn token(&self, life: Duration) -> String {
        token(self.clock.now() + life)
    }

    fn counted(&self, result: &str) -> bool {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        text.contains(&format!(
            "kiam_node_token_reviews_total{{result=\"{result}\"}} 1\n"
        ))
    }
}

fn agent() -> Reviewed {
    Reviewed {
        user: "system:serviceaccount:kube-system:kiam-agent".to_owned(),
        pod_uid: Some("agent-1".into()),
        node: Some("node-1".to_owned()),
    }
}

fn token(end: SystemTime) -> String {
    let end = end
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    format!(
        "e30.{}.c2ln",
        URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{end}}}"))
    )
}

fn refused() -> Result<Reviewed, ReviewError> {
    Err(ReviewError::Refused("the pod is gone".to_owned()))
}

fn down() -> Result<Reviewed, ReviewError> {
    Err(ReviewError::Unavailable("connection refused".to_owned()))
}

#[tokio::test]
async fn a_token_proves_the_node_of_its_pod_and_no_other() {
    let cluster = Arc::new(Cluster::new());
    cluster.apply(pod("agent-1", "kube-system", "kiam-agent-x", "node-1").into());
    let with = |change: fn(&mut Reviewed)| {
        let mut reviewed = agent();
        change(&mut reviewed);
        Ok(reviewed)
    };
    let cases: [(&str, Result<Reviewed, ReviewError>, &str); 9] = [
        ("node-1", Ok(agent()), ""),
        // The node of the pod, for API servers that return no node claim.
        ("node-1", with(|r| r.node = None), ""),
        ("node-2", Ok(agent()), "comes from node-1"),
        (
            "node-1",
            with(|r| r.user = "system:serviceaccount:web:default".to_owned()),
            "web:default",
        ),
        ("node-1", with(|r| r.pod_uid = None), "not bound to a pod"),
        (
            "node-2",
            with(|r| r.node = Some("node-2".to_owned())),
            "is not the node of its pod",
        ),
        (
            "node-1",
            with(|r| {
                r.node = None;
                r.pod_uid = Some("gone".into());
            }),
            "not known yet",
        ),
        (
            "node-1",
            Err(ReviewError::Refused("expired".to_owned())),
            "expired",
        ),
        (
            "node-1",
            Err(ReviewError::Unavailable("down".to_owned())),
            "cannot be checked now",
        ),
    ];
    for (asked, reviewed, expected) in cases {
        let fixture = Fixture::with(Arc::clone(&cluster), reviewed);
        let outcome = fixture.ask(asked, "token").await;
        match outcome {
            Ok(proved) => {
                assert_eq!(expected, "");
                assert_eq!(proved.agent_pod, Some("agent-1".into()));
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !expected.is_empty() && text.contains(expected),
                    "{asked}: {text}"
                );
                assert!(!text.contains("token\""), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_proves_only_the_nodes_that_it_names() {
    let node: NodeName = "node-1".parse().unwrap();
    let evidence = |dns: &[&str]| Evidence {
        names: PeerNames {
            dns: dns.iter().map(ToString::to_string).collect(),
            ..PeerNames::default()
        },
        token: None,
    };
    let check = async |dns: &[&str]| NodeProof::Certificate.check(&node, evidence(dns)).await;
    assert!(check(&["node-1.node.kiam"]).await.is_ok());
    assert!(check(&["other", "node-1.node.kiam"]).await.is_ok());
    let error = check(&["node-2.node.kiam"]).await.unwrap_err().to_string();
    assert!(error.contains("node-2"), "{error}");
    let error = check(&["kiam-server"]).await.unwrap_err().to_string();
    assert!(error.contains("NODE.node.kiam"), "{error}");
    assert!(
        NodeProof::None
            .check(&node, Evidence::default())
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_reviewed_token_is_cached_for_a_while() {
    let fixture = Fixture::new();
    let token = fixture.token(60 * MINUTE);
    for _ in 0..5 {
        fixture.ask("node-1", &token).await.unwrap();
    }
    assert_eq!(fixture.reviews(), 1);
    // A cached token proves its node, and no other.
    let error = fixture.ask("node-2", &token).await.unwrap_err();
    assert_eq!(error.as_label(), "other_node");
    assert_eq!(fixture.reviews(), 1);
    tokio::time::advance(5 * MINUTE).await;
    fixture.ask("node-1", &token).await.unwrap();
    assert_eq!(fixture.reviews(), 2);
    // A token that differs in one character is reviewed.
    let other = format!("{token}x");
    fixture.ask("node-1", &other).await.unwrap();
    assert_eq!(fixture.reviews(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_removed_from_the_cache_when_the_pod_of_the_agent_changes() {
    type Change = fn(&Cluster);
    let changes: [(&str, Change); 3] = [
        ("gone", |cluster| {
            cluster.delete(&ObjectKey::Pod("agent-1".into()));
        }),
        ("moved", |cluster| {
            cluster.apply(pod("agent-1", "kube-system", "kiam-agent-x", "node-2").into());
        }),
        ("changed", |cluster| {
            let mut pod = pod("agent-1", "kube-system", "kiam-agent-x", "node-1");
            pod.annotations = Annotations {
                role: Some("x".into()),
                ..Annotations::default()
            }
            .boxed();
            cluster.apply(pod.into());
        }),
    ];
    for (what, change) in changes {
        let fixture = Fixture::new();
        let token = fixture.token(60 * MINUTE);
        fixture.ask("node-1", &token).await.unwrap();
        change(&fixture.cluster);
        fixture.set_result(refused());
        let error = fixture.ask("node-1", &token).await.unwrap_err();
        assert_eq!(error.as_label(), "token_refused", "{what}");
        // It is gone from the cache: it is not used while the API is down either.
        let before = pod("agent-1", "kube-system", "kiam-agent-x", "node-1");
        fixture.cluster.apply(before.into());
        fixture.set_result(down());
        let error = fixture.ask("node-1", &token).await.unwrap_err();
        assert_eq!(error.as_label(), "unavailable", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_cached_until_it_expires_by_either_clock() {
    let fixture = Fixture::new();
    let token = fixture.token(2 * MINUTE);
    fixture.ask("node-1", &token).await.unwrap();
    tokio::time::advance(MINUTE).await;
    fixture.set_result(refused());
    fixture.ask("node-1", &token).await.unwrap();
    // The wall clock is set back by an hour; the token expires by the monotonic clock.
    fixture.clock.step(-3600);
    tokio::time::advance(MINUTE).await;
    assert!(fixture.ask("node-1", &token).await.is_err());

    let fixture = Fixture::new();
    let token = fixture.token(2 * MINUTE);
    fixture.ask("node-1", &token).await.unwrap();
    fixture.set_result(refused());
    fixture.clock.step(120);
    assert!(fixture.ask("node-1", &token).await.is_err());

    // A token without an expiration, or with one in the past, is reviewed every time.
    for opaque in [true, false] {
        let fixture = Fixture::new();
        let ended = fixture.token(Duration::ZERO);
        let token = if opaque { "opaque".to_owned() } else { ended };
        fixture.ask("node-1", &token).await.unwrap();
        fixture.ask("node-1", &token).await.unwrap();
        assert_eq!(fixture.reviews(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn cached_tokens_are_accepted_while_the_api_is_down_until_they_expire() {
    for silence in [down(), Err(ReviewError::Unavailable("hangs".to_owned()))] {
        let fixture = Fixture::new();
        let token = fixture.token(60 * MINUTE);
        fixture.ask("node-1", &token).await.unwrap();
        tokio::time::advance(50 * MINUTE).await;
        fixture.set_result(silence.clone());
        let began = tokio::time::Instant::now();
        fixture.ask("node-1", &token).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(5));
        assert!(fixture.counted("remembered_api_down"));
        // Unknown and expired tokens are not accepted.
        let unknown = fixture.token(61 * MINUTE);
        let error = fixture.ask("node-1", &unknown).await.unwrap_err();
        assert_eq!(error.as_label(), "unavailable");
        assert!(fixture.counted("unavailable"));
        tokio::time::advance(10 * MINUTE).await;
        assert!(fixture.ask("node-1", &token).await.is_err());
        // Rejections are not cached: the token is accepted once the API is back.
        fixture.set_result(Ok(agent()));
        fixture.ask("node-1", &token).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_not_cached_and_removes_the_token_from_the_cache() {
    let fixture = Fixture::new();
    let token = fixture.token(60 * MINUTE);
    fixture.set_result(refused());
    assert!(fixture.ask("node-1", &token).await.is_err());
    // The API accepts the token now: it is accepted at once.
    fixture.set_result(Ok(agent()));
    fixture.ask("node-1", &token).await.unwrap();
    tokio::time::advance(6 * MINUTE).await;
    fixture.set_result(refused());
    assert!(fixture.ask("node-1", &token).await.is_err());
    fixture.set_result(down());
    assert!(fixture.ask("node-1", &token).await.is_err());
    // A token of another service account is not cached.
    let other = Reviewed {
        user: "system:serviceaccount:web:default".to_owned(),
        ..agent()
    };
    fixture.set_result(Ok(other));
    assert!(fixture.ask("node-1", &token).await.is_err());
    fixture.set_result(down());
    assert!(fixture.ask("node-1", &token).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded_and_keeps_the_tokens_that_expire_last() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let known = Arc::new(pod("agent-1", "kube-system", "kiam-agent-x", "node-1"));
    let agent = AgentPod {
        pod_uid: "agent-1".into(),
        node: "node-1".parse().unwrap(),
    };
    let mut cache = TokenCache::default();
    let mut put = |seconds: usize, now| {
        let text = token(now + Duration::from_secs(seconds as u64));
        cache.put(Key::of(&text), &text, &agent, Arc::clone(&known), now);
        cache.len()
    };
    for seconds in 1..=MAX_TOKENS + 100 {
        assert!(put(seconds, now) <= MAX_TOKENS);
    }
    // All expired tokens are removed at once.
    let later = now + Duration::from_secs(MAX_TOKENS as u64 - 10);
    tokio::time::advance(Duration::from_secs(MAX_TOKENS as u64 - 10)).await;
    assert_eq!(put(5000, later), 111);
}

/// Responses of the API to a TokenReview, and the resulting errors.
#[tokio::test(start_paused = true)]
async fn only_a_complete_positive_review_is_accepted() {
    let user = json!({
        "username": "system:serviceaccount:kube-system:kiam-agent",
        "extra": {
            "authentication.kubernetes.io/pod-uid": ["agent-1"],
            "authentication.kubernetes.io/node-name": ["node-1"],
        },
    });
    let yes = json!({ "authenticated": true, "audiences": ["kiam-server"], "user": user });
    let with = |field: &str, value: Value| {
        let mut status = yes.clone();
        status[field] = value;
        json!({ "status": status })
    };
    let other_user = |name: &str, extra: Value| json!({ "username": name, "extra": extra });
    let account = "system:serviceaccount:kube-system:kiam-agent";
    for (answer, expected) in [
        (json!({ "status": yes }), None),
        (with("authenticated", false.into()), Some("token_refused")),
        (with("authenticated", Value::Null), Some("token_refused")),
        (json!({}), Some("token_refused")),
        (
            json!({ "status": { "error": "invalid bearer token, token has expired" } }),
            Some("token_refused"),
        ),
        // An API server without support for audiences, and tokens for another audience.
        (with("audiences", Value::Null), Some("token_refused")),
        (with("audiences", json!([])), Some("token_refused")),
        (with("audiences", json!(["vault"])), Some("token_refused")),
        (with("user", Value::Null), Some("other_account")),
        (
            with(
                "user",
                other_user("system:serviceaccount:web:default", json!({})),
            ),
            Some("other_account"),
        ),
        (
            with(
                "user",
                other_user(&format!("{account}-x"), user["extra"].clone()),
            ),
            Some("other_account"),
        ),
        (
            with("user", other_user(account, json!({}))),
            Some("unbound_token"),
        ),
        (
            with(
                "user",
                other_user(
                    account,
                    json!({ "authentication.kubernetes.io/pod-uid": [] }),
                ),
            ),
            Some("unbound_token"),
        ),
        // Invalid responses.
        (with("authenticated", "yes".into()), Some("unavailable")),
        (json!("yes"), Some("unavailable")),
        (Value::Null, Some("unavailable")),
    ] {
        let fixture = Fixture::new();
        let api = FakeApi::new();
        api.review(answer.clone());
        let error = ask_api(&fixture, &api).await.err();
        let label = error.as_ref().map(ProofError::as_label);
        assert_eq!(label, expected, "{answer}: {error:?}");
        assert!(!format!("{error:?}").contains("c2ln"), "{error:?}");
    }
    for mode in [ApiMode::Unavailable, ApiMode::Refuses, ApiMode::Hangs] {
        let fixture = Fixture::new();
        let api = FakeApi::new();
        api.set_mode(mode);
        // The clock is paused: this is the limit of a review, and a little more.
        let limit = Duration::from_secs(6);
        let asked = tokio::time::timeout(limit, ask_api(&fixture, &api)).await;
        let error = asked.expect("it gives up").unwrap_err();
        assert_eq!(error.as_label(), "unavailable", "{mode:?}: {error}");
        assert!(!format!("{error:?} {error}").contains("c2ln"), "{error}");
    }
}

/// Checks a token of the fixture, reviewed by the fake API.
async fn ask_api(fixture: &Fixture, api: &FakeApi) -> Result<Proved, ProofError> {
    let proof = TokenProof::new(
        Arc::new(Tokens::new(api.client())),
        Arc::clone(&fixture.cluster),
        "kiam-server".to_owned(),
        ("kube-system", "kiam-agent"),
        Arc::new(fixture.clock.clone()),
        ReviewMetrics::new(&Registry::new()).unwrap(),
    );
    let token = fixture.token(MINUTE);
    let evidence = Evidence {
        token: Some(&token),
        ..Evidence::default()
    };
    let proof = NodeProof::Token(Arc::new(proof));
    proof.check(&"node-1".parse().unwrap(), evidence).await
}
