//! Tokens of every kind, and what is remembered of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prometheus::Registry;
use serde_json::{Value, json};

use super::agent_pod::AgentPod;
use super::remembered::{Key, MAX_REMEMBERED, Remembered};
use super::*;
use crate::clock::Clock as _;
use crate::cluster::Cluster;
use crate::cluster::object::{Annotations, ObjectKey};
use crate::testing::api::{FakeApi, Mood};
use crate::testing::{TestClock, pod};

const MINUTE: Duration = Duration::from_secs(60);

/// Reviews as it was told to, and counts.
struct Reviews {
    says: Mutex<Result<Reviewed, ReviewError>>,
    asked: AtomicUsize,
}

#[async_trait]
impl TokenReviews for Reviews {
    async fn review(&self, _token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        assert_eq!(audience, "kiam-server");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().clone();
        if says == Err(ReviewError::Unavailable("hangs".to_owned())) {
            std::future::pending::<()>().await;
        }
        says
    }
}

struct Stage {
    cluster: Arc<Cluster>,
    clock: TestClock,
    reviews: Arc<Reviews>,
    registry: Registry,
    proof: NodeProof,
}

impl Stage {
    fn new() -> Self {
        let cluster = Arc::new(Cluster::new());
        cluster.apply(pod("agent-1", "kube-system", "kiam-agent-x", "node-1").into());
        Self::with(cluster, Ok(agent()))
    }

    fn with(cluster: Arc<Cluster>, says: Result<Reviewed, ReviewError>) -> Self {
        let clock = TestClock::new();
        let reviews = Arc::new(Reviews {
            says: Mutex::new(says),
            asked: AtomicUsize::new(0),
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

    fn says(&self, says: Result<Reviewed, ReviewError>) {
        *self.reviews.says.lock().unwrap() = says;
    }

    /// How often the API was asked.
    fn asked(&self) -> usize {
        self.reviews.asked.load(Ordering::SeqCst)
    }

    /// A token that lives for so long from now.
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
        pod_uid: Some("agent-1".to_owned()),
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
        // An API server that tells no node: the pod itself does.
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
            "not the node that its pod",
        ),
        (
            "node-1",
            with(|r| {
                r.node = None;
                r.pod_uid = Some("gone".to_owned());
            }),
            "not known here",
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
        let stage = Stage::with(Arc::clone(&cluster), reviewed);
        let outcome = stage.ask(asked, "token").await;
        match outcome {
            Ok(proved) => {
                assert_eq!(expected, "");
                assert_eq!(proved.agent_pod.as_deref(), Some("agent-1"));
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
async fn without_the_right_evidence_no_node_is_proved() {
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
async fn an_agent_that_comes_back_costs_the_api_nothing_for_a_while() {
    let stage = Stage::new();
    let token = stage.token(60 * MINUTE);
    for _ in 0..5 {
        stage.ask("node-1", &token).await.unwrap();
    }
    assert_eq!(stage.asked(), 1);
    // What was remembered proves that node, and no other.
    let error = stage.ask("node-2", &token).await.unwrap_err();
    assert_eq!(error.as_label(), "other_node");
    assert_eq!(stage.asked(), 1);
    tokio::time::advance(5 * MINUTE).await;
    stage.ask("node-1", &token).await.unwrap();
    assert_eq!(stage.asked(), 2);
    // Another token, be it of one other character, is another question.
    let other = format!("{token}x");
    stage.ask("node-1", &other).await.unwrap();
    assert_eq!(stage.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_forgotten_when_the_agent_s_pod_goes_moves_or_changes() {
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
        let stage = Stage::new();
        let token = stage.token(60 * MINUTE);
        stage.ask("node-1", &token).await.unwrap();
        change(&stage.cluster);
        stage.says(refused());
        let error = stage.ask("node-1", &token).await.unwrap_err();
        assert_eq!(error.as_label(), "token_refused", "{what}");
        // Not even while the API is down: it was forgotten, not only passed over.
        let before = pod("agent-1", "kube-system", "kiam-agent-x", "node-1");
        stage.cluster.apply(before.into());
        stage.says(down());
        let error = stage.ask("node-1", &token).await.unwrap_err();
        assert_eq!(error.as_label(), "unavailable", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_remembered_no_longer_than_it_lives_whatever_the_clock_says() {
    let stage = Stage::new();
    let token = stage.token(2 * MINUTE);
    stage.ask("node-1", &token).await.unwrap();
    tokio::time::advance(MINUTE).await;
    stage.says(refused());
    stage.ask("node-1", &token).await.unwrap();
    // The clock is set back by an hour, and the token has run out all the same.
    stage.clock.step(-3600);
    tokio::time::advance(MINUTE).await;
    assert!(stage.ask("node-1", &token).await.is_err());

    let stage = Stage::new();
    let token = stage.token(2 * MINUTE);
    stage.ask("node-1", &token).await.unwrap();
    stage.says(refused());
    stage.clock.step(120);
    assert!(stage.ask("node-1", &token).await.is_err());

    // One that does not say how long it lives, or that has ended by this clock, is asked about
    // each time.
    for opaque in [true, false] {
        let stage = Stage::new();
        let ended = stage.token(Duration::ZERO);
        let token = if opaque { "opaque".to_owned() } else { ended };
        stage.ask("node-1", &token).await.unwrap();
        stage.ask("node-1", &token).await.unwrap();
        assert_eq!(stage.asked(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_api_is_down_or_hangs_agents_come_back_until_their_tokens_end() {
    for silence in [down(), Err(ReviewError::Unavailable("hangs".to_owned()))] {
        let stage = Stage::new();
        let token = stage.token(60 * MINUTE);
        stage.ask("node-1", &token).await.unwrap();
        tokio::time::advance(50 * MINUTE).await;
        stage.says(silence.clone());
        let began = tokio::time::Instant::now();
        stage.ask("node-1", &token).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(5));
        assert!(stage.counted("remembered_api_down"));
        // Not one that it never knew, and not for ever.
        let unknown = stage.token(61 * MINUTE);
        let error = stage.ask("node-1", &unknown).await.unwrap_err();
        assert_eq!(error.as_label(), "unavailable");
        assert!(stage.counted("unavailable"));
        tokio::time::advance(10 * MINUTE).await;
        assert!(stage.ask("node-1", &token).await.is_err());
        // And a no is a no: nothing of it sticks when the API is back.
        stage.says(Ok(agent()));
        stage.ask("node-1", &token).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_by_nobody_and_ends_what_was() {
    let stage = Stage::new();
    let token = stage.token(60 * MINUTE);
    stage.says(refused());
    assert!(stage.ask("node-1", &token).await.is_err());
    // The API has learned of the pod: at once.
    stage.says(Ok(agent()));
    stage.ask("node-1", &token).await.unwrap();
    tokio::time::advance(6 * MINUTE).await;
    stage.says(refused());
    assert!(stage.ask("node-1", &token).await.is_err());
    stage.says(down());
    assert!(stage.ask("node-1", &token).await.is_err());
    // Nor is what is of somebody else.
    let other = Reviewed {
        user: "system:serviceaccount:web:default".to_owned(),
        ..agent()
    };
    stage.says(Ok(other));
    assert!(stage.ask("node-1", &token).await.is_err());
    stage.says(down());
    assert!(stage.ask("node-1", &token).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn however_many_tokens_come_few_are_remembered_and_those_that_live_longest() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let known = Arc::new(pod("agent-1", "kube-system", "kiam-agent-x", "node-1"));
    let agent = AgentPod {
        pod_uid: "agent-1".into(),
        node: "node-1".parse().unwrap(),
    };
    let mut remembered = Remembered::default();
    let mut put = |seconds: usize, now| {
        let text = token(now + Duration::from_secs(seconds as u64));
        remembered.put(Key::of(&text), &text, &agent, Arc::clone(&known), now);
        remembered.len()
    };
    for seconds in 1..=MAX_REMEMBERED + 100 {
        assert!(put(seconds, now) <= MAX_REMEMBERED);
    }
    // All that have expired make room at once.
    let later = now + Duration::from_secs(MAX_REMEMBERED as u64 - 10);
    tokio::time::advance(Duration::from_secs(MAX_REMEMBERED as u64 - 10)).await;
    assert_eq!(put(5000, later), 111);
}

/// What the API may say to a TokenReview, and what that is taken for.
#[tokio::test(start_paused = true)]
async fn whatever_the_api_says_of_a_token_only_a_full_yes_is_one() {
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
        // An API that knows no audiences, and a token that is for another.
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
        // No answer of this API's at all.
        (with("authenticated", "yes".into()), Some("unavailable")),
        (json!("yes"), Some("unavailable")),
        (Value::Null, Some("unavailable")),
    ] {
        let stage = Stage::new();
        let api = FakeApi::new();
        api.review(answer.clone());
        let error = ask_api(&stage, &api).await.err();
        let label = error.as_ref().map(ProofError::as_label);
        assert_eq!(label, expected, "{answer}: {error:?}");
        assert!(!format!("{error:?}").contains("c2ln"), "{error:?}");
    }
    for mood in [Mood::Unavailable, Mood::Refuses, Mood::Hangs] {
        let stage = Stage::new();
        let api = FakeApi::new();
        api.mood(mood);
        let began = tokio::time::Instant::now();
        let error = ask_api(&stage, &api).await.unwrap_err();
        assert_eq!(error.as_label(), "unavailable", "{mood:?}: {error}");
        assert!(began.elapsed() <= Duration::from_secs(5), "{mood:?}");
        assert!(!format!("{error:?} {error}").contains("c2ln"), "{error}");
    }
}

/// A proof by the stage's token, reviewed by the API.
async fn ask_api(stage: &Stage, api: &FakeApi) -> Result<Proved, ProofError> {
    let proof = TokenProof::new(
        Arc::new(Tokens::new(api.client())),
        Arc::clone(&stage.cluster),
        "kiam-server".to_owned(),
        ("kube-system", "kiam-agent"),
        Arc::new(stage.clock.clone()),
        ReviewMetrics::new(&Registry::new()).unwrap(),
    );
    let token = stage.token(MINUTE);
    let evidence = Evidence {
        token: Some(&token),
        ..Evidence::default()
    };
    let proof = NodeProof::Token(Arc::new(proof));
    proof.check(&"node-1".parse().unwrap(), evidence).await
}
