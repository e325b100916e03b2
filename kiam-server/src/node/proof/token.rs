//! Proof of a node by a service account token: the pod of the token is bound to the node.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use kube::api::{Api, PostParams};
use prometheus::{IntCounterVec, Opts};
use tokio::sync::Semaphore;

use super::ProofError;
use super::agent_pod::AgentPod;
use super::cache::{Key, Known, TokenCache};
use crate::clock::Clock;
use crate::cluster::Cluster;

/// Claims that the API returns for a bound token (Kubernetes documentation, "Managing Service
/// Accounts"; the node since 1.29).
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The longest token that is reviewed, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Concurrent reviews: all agents of a cluster may connect to one server at the same time.
const MAX_REVIEWS: usize = 64;
/// The limit for one review. After it the API counts as unavailable, and cached tokens are
/// accepted.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// The subject of a reviewed token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The UID of the pod that the token is bound to.
    pub pod_uid: Option<PodUid>,
    /// The node of the pod, if the API returns it.
    pub node: Option<String>,
}

/// The error of a review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The API rejects the token.
    #[error("{0}")]
    Refused(String),
    /// The API is unavailable, or does not permit the server to review tokens.
    #[error("{0}")]
    Unavailable(String),
}

/// The reviewer of tokens: the Kubernetes API, or a test double.
#[async_trait]
pub trait TokenReviews: Send + Sync + 'static {
    /// Reviews a token for `audience`.
    async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError>;
}

/// Metrics of reviews.
#[derive(Debug, Clone)]
pub struct ReviewMetrics(IntCounterVec);

impl ReviewMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reviews = IntCounterVec::new(
            Opts::new(
                "kiam_node_token_reviews_total",
                "Checked tokens of agents, by result: reviewed by the API (accepted, refused), found \
                 in the cache (remembered), found in the cache while the API was unavailable \
                 (remembered_api_down), or not checked (unavailable).",
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

/// Proof of a node by a service account token.
pub struct TokenProof {
    reviews: Arc<dyn TokenReviews>,
    cluster: Arc<Cluster>,
    audience: String,
    user: String,
    clock: Arc<dyn Clock>,
    cache: Mutex<TokenCache>,
    permits: Semaphore,
    metrics: ReviewMetrics,
}

impl TokenProof {
    /// Accepts tokens of the service account `namespace`/`name` for `audience`.
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
            cache: Mutex::default(),
            permits: Semaphore::new(MAX_REVIEWS),
            metrics,
        }
    }

    /// Returns the agent that a token belongs to.
    pub(super) async fn agent(&self, token: &str) -> Result<AgentPod, ProofError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(ProofError::Refused {
                problem: "it is empty or too long".to_owned(),
            });
        }
        let key = Key::of(token);
        let pod_of = |uid: &str| self.cluster.pod(uid);
        let known = self.cache().get(&key, self.clock.now(), pod_of);
        if let Known::Fresh(agent) = known {
            self.metrics.count("remembered");
            return Ok(agent);
        }
        match self.review(token).await {
            Ok(reviewed) => {
                self.metrics.count("accepted");
                let agent = self.agent_of(reviewed);
                let pod = agent.as_ref().ok().and_then(|agent| {
                    let pod = pod_of(agent.pod_uid.as_str());
                    pod.filter(|pod| pod.node.as_deref() == Some(agent.node.as_str()))
                });
                let mut cache = self.cache();
                match (&agent, pod) {
                    (Ok(agent), Some(pod)) => {
                        cache.put(key, token, agent, pod, self.clock.now());
                    }
                    _ => cache.remove(&key),
                }
                agent
            }
            Err(ReviewError::Refused(problem)) => {
                self.metrics.count("refused");
                self.cache().remove(&key);
                Err(ProofError::Refused { problem })
            }
            Err(ReviewError::Unavailable(problem)) => {
                // Looked up again: the pod may have changed, or the token expired, in the meantime.
                match self.cache().get(&key, self.clock.now(), pod_of) {
                    Known::Fresh(agent) | Known::Stale(agent) => {
                        self.metrics.count("remembered_api_down");
                        tracing::warn!(node = %agent.node, "accepted a cached token, because the API is unavailable: {problem}");
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
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            self.reviews.review(token, &self.audience).await
        };
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, asked).await;
        answer.unwrap_or_else(|_elapsed| {
            let seconds = REVIEW_TIMEOUT.as_secs();
            Err(ReviewError::Unavailable(format!(
                "the Kubernetes API did not respond to a TokenReview within {seconds} s"
            )))
        })
    }

    fn agent_of(&self, reviewed: Reviewed) -> Result<AgentPod, ProofError> {
        if reviewed.user != self.user {
            let (user, expected) = (reviewed.user, self.user.clone());
            return Err(ProofError::OtherAccount { user, expected });
        }
        let unbound = |problem| ProofError::Unbound { problem };
        let uid = reviewed.pod_uid.ok_or_else(|| {
            unbound("it is not bound to a pod; mount it as a projected serviceAccountToken volume")
        })?;
        // If both are known, the claimed node must be the node of the pod.
        let pod = self
            .cluster
            .pod(uid.as_str())
            .and_then(|pod| pod.node.clone());
        let node = match (reviewed.node, pod) {
            (Some(claimed), Some(bound)) if *claimed != *bound => {
                return Err(unbound("its node claim is not the node of its pod"));
            }
            (Some(node), _) => node,
            (None, Some(node)) => node.to_string(),
            (None, None) => {
                return Err(unbound("the pod that it is bound to is not known yet"));
            }
        };
        let node = node
            .parse()
            .map_err(|_unparsable| unbound("the name of its node is invalid"))?;
        Ok(AgentPod { pod_uid: uid, node })
    }

    fn cache(&self) -> MutexGuard<'_, TokenCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The TokenReview API of Kubernetes.
pub struct Tokens(Api<TokenReview>);

impl Tokens {
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
        // An API server without support for audiences returns none: it reviewed the token for
        // itself.
        if !status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|granted| granted == audience)
        {
            return Err(ReviewError::Refused(format!(
                "its audience is not {audience}"
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
        pod_uid: claim(POD_UID).map(PodUid::from),
        node: claim(NODE_NAME),
    }
}
