//! The node of a service-account token: the one that the agent's pod is bound to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::{Api, PostParams};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::Semaphore;

use super::ProofError;
use super::agent_pod::AgentPod;
use super::remembered::{Key, Known, Remembered};
use crate::clock::Clock;
use crate::cluster::Cluster;

/// Claims that the API puts beside a bound token's user (Kubernetes documentation, "Managing
/// service accounts", bound tokens; the node since 1.29).
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The longest token that is sent on, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Reviews under way at once: all agents of a cluster may come to one server together.
const MAX_REVIEWS: usize = 64;
/// The API counts as out of reach then, and what is remembered of a token must do.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// What the API says of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The pod that the token is bound to.
    pub pod_uid: Option<String>,
    /// The node that this pod is bound to, where the API tells.
    pub node: Option<String>,
}

/// Why a token was not reviewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The API says that it is not valid.
    #[error("{0}")]
    Refused(String),
    /// The API was not reached, or does not let the server ask.
    #[error("{0}")]
    Unavailable(String),
}

/// Whoever reviews tokens: the Kubernetes API, or a test's double of it.
#[async_trait]
pub trait TokenReviews: Send + Sync + 'static {
    /// Asks whose a token is, and whether it is meant for `audience`.
    async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError>;
}

/// What is counted about reviews of tokens.
#[derive(Debug, Clone)]
pub struct ReviewMetrics(IntCounterVec);

impl ReviewMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reviews = IntCounterVec::new(
            Opts::new(
                "kiam_node_token_reviews_total",
                "Agents' tokens that were asked about, by what answered: the API (accepted, refused), \
                 memory (remembered), memory as the API did not (remembered_api_down), nobody \
                 (unavailable).",
            ),
            &["result"],
        )?;
        registry.register(Box::new(reviews.clone()))?;
        for result in [
            "accepted",
            "refused",
            "remembered",
            "remembered_api_down",
            "unavailable",
        ] {
            reviews.with_label_values(&[result]);
        }
        Ok(Self(reviews))
    }

    fn count(&self, result: &str) {
        self.0.with_label_values(&[result]).inc();
    }
}

/// Proof of node by token.
pub struct TokenProof {
    reviews: Arc<dyn TokenReviews>,
    cluster: Arc<Cluster>,
    audience: String,
    user: String,
    clock: Arc<dyn Clock>,
    remembered: Mutex<Remembered>,
    under_way: Semaphore,
    metrics: ReviewMetrics,
}

impl TokenProof {
    /// Accepts tokens for `audience` of the service account `namespace`/`name`.
    #[must_use]
    pub fn new(
        reviews: Arc<dyn TokenReviews>,
        cluster: Arc<Cluster>,
        audience: String,
        (namespace, name): (&str, &str),
        clock: Arc<dyn Clock>,
        metrics: ReviewMetrics,
    ) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Self {
            reviews,
            cluster,
            audience,
            user,
            clock,
            remembered: Mutex::default(),
            under_way: Semaphore::new(MAX_REVIEWS),
            metrics,
        }
    }

    /// The agent that the token is of.
    pub(super) async fn agent(&self, token: &str) -> Result<AgentPod, ProofError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(ProofError::Refused {
                problem: "it is empty or too long".to_owned(),
            });
        }
        let key = Key::of(token);
        let pod_of = |uid: &str| self.cluster.pod(uid);
        let known = self.remembered().get(&key, self.clock.now(), pod_of);
        if let Known::Fresh(agent) = known {
            self.metrics.count("remembered");
            return Ok(agent);
        }
        match self.review(token).await {
            Ok(reviewed) => {
                self.metrics.count("accepted");
                let judged = self.judge(reviewed);
                let pod = judged.as_ref().ok().and_then(|agent| {
                    let pod = pod_of(&agent.pod_uid);
                    pod.filter(|pod| pod.node.as_deref() == Some(agent.node.as_str()))
                });
                let mut remembered = self.remembered();
                match (&judged, pod) {
                    (Ok(agent), Some(pod)) => {
                        remembered.put(key, token, agent, pod, self.clock.now());
                    }
                    _ => remembered.forget(&key),
                }
                judged
            }
            Err(ReviewError::Refused(problem)) => {
                self.metrics.count("refused");
                self.remembered().forget(&key);
                Err(ProofError::Refused { problem })
            }
            Err(ReviewError::Unavailable(problem)) => {
                // Time has passed, in which the pod or the token may have come to their end.
                match self.remembered().get(&key, self.clock.now(), pod_of) {
                    Known::Fresh(agent) | Known::Stale(agent) => {
                        self.metrics.count("remembered_api_down");
                        tracing::warn!(node = %agent.node, "took a token that was reviewed before, as it cannot be now: {problem}");
                        Ok(agent)
                    }
                    Known::Unknown => {
                        self.metrics.count("unavailable");
                        Err(ProofError::Unavailable { problem })
                    }
                }
            }
        }
    }

    async fn review(&self, token: &str) -> Result<Reviewed, ReviewError> {
        let asked = async {
            // Never closed.
            let _turn = self.under_way.acquire().await;
            self.reviews.review(token, &self.audience).await
        };
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, asked).await;
        answer.unwrap_or_else(|_elapsed| {
            let seconds = REVIEW_TIMEOUT.as_secs();
            Err(ReviewError::Unavailable(format!(
                "the Kubernetes API has not answered a TokenReview within {seconds} s"
            )))
        })
    }

    fn judge(&self, reviewed: Reviewed) -> Result<AgentPod, ProofError> {
        if reviewed.user != self.user {
            let (user, expected) = (reviewed.user, self.user.clone());
            return Err(ProofError::OtherAccount { user, expected });
        }
        let unbound = |problem| ProofError::Unbound { problem };
        let uid = reviewed.pod_uid.ok_or_else(|| {
            unbound("it is not bound to a pod; mount it as a projected serviceAccountToken volume")
        })?;
        // The API's claim and the pod itself must agree, where there are both.
        let pod = self.cluster.pod(&uid).and_then(|pod| pod.node.clone());
        let node = match (reviewed.node, pod) {
            (Some(claimed), Some(bound)) if *claimed != *bound => {
                return Err(unbound(
                    "its node claim is not the node that its pod is bound to",
                ));
            }
            (Some(node), _) => node,
            (None, Some(node)) => node.to_string(),
            (None, None) => {
                return Err(unbound("the pod that it is bound to is not known here yet"));
            }
        };
        let node = node
            .parse()
            .map_err(|_unparsable| unbound("the name of its node is malformed"))?;
        Ok(AgentPod {
            pod_uid: uid.into(),
            node,
        })
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { audience, user, .. } = self;
        f.debug_struct("TokenProof")
            .field("audience", audience)
            .field("user", user)
            .finish_non_exhaustive()
    }
}

/// The TokenReview API.
pub struct Tokens(Api<TokenReview>);

impl Tokens {
    /// Reviews through `client`.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Self(Api::all(client))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

#[async_trait]
impl TokenReviews for Tokens {
    async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = self
            .0
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| ReviewError::Unavailable(error.to_string()))?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let problem = status.error.unwrap_or_else(|| "it is not valid".to_owned());
            return Err(ReviewError::Refused(problem));
        }
        // An API that knows nothing of audiences answers without them: its yes is for itself.
        if !status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|granted| granted == audience)
        {
            return Err(ReviewError::Refused(format!(
                "it is not meant for {audience}"
            )));
        }
        Ok(reviewed(status.user.unwrap_or_default()))
    }
}

fn reviewed(user: UserInfo) -> Reviewed {
    let mut extra = user.extra.unwrap_or_default();
    let mut claim = |name: &str| extra.remove(name).and_then(|mut values| values.pop());
    Reviewed {
        user: user.username.unwrap_or_default(),
        pod_uid: claim(POD_UID),
        node: claim(NODE_NAME),
    }
}
