//! Proof of the node that a call comes from.

mod agent_pod;
mod cache;
mod certificate;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use kiam_common::pod_uid::PodUid;
use kiam_common::tls::PeerNames;

use super::NodeName;
pub use token::{ReviewError, ReviewMetrics, Reviewed, TokenProof, TokenReviews, Tokens};

/// The evidence of a call for its node.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// The names in the verified certificate of the client.
    pub names: PeerNames,
    /// The service account token in the metadata of the call.
    pub token: Option<&'a str>,
}

/// The kind of proof that calls must give.
#[derive(Debug, Clone)]
pub enum NodeProof {
    /// A token of the service account of the agents, bound to the pod of the agent.
    Token(Arc<TokenProof>),
    /// A name in the certificate of the client.
    Certificate,
    /// No proof: every agent may ask for every node.
    None,
}

/// A valid proof.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proved {
    /// The UID of the pod that the proof depends on: the proof ends with the pod.
    pub agent_pod: Option<PodUid>,
}

/// The error of an insufficient proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The call has no token.
    #[error(
        "the call has no service account token; start the agent with --token-file, or the server with another --node-authorization"
    )]
    NoToken,
    /// The API rejects the token.
    #[error("the Kubernetes API rejects the token of the agent: {problem}")]
    Refused {
        /// The message of the API.
        problem: String,
    },
    /// The token belongs to another service account.
    #[error("the token belongs to {user}; expected {expected}")]
    OtherAccount { user: String, expected: String },
    /// The token is not bound to a known pod.
    #[error("the token does not prove a node: {problem}")]
    Unbound { problem: &'static str },
    /// The certificate does not name a node.
    #[error(
        "the client certificate does not name a node; it needs the DNS name NODE.node.kiam or the URI spiffe://DOMAIN/node/NODE"
    )]
    NoName,
    /// The proof is for another node.
    #[error("the call asks for node {asked}, but proves that it comes from {proved}")]
    OtherNode { asked: String, proved: String },
    /// The proof could not be checked.
    #[error("the token cannot be checked now: {problem}")]
    Unavailable { problem: String },
}

impl ProofError {
    /// Returns the value of the labels `reason` and `result` of metrics.
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Refused { .. } => "token_refused",
            Self::OtherAccount { .. } => "other_account",
            Self::Unbound { .. } => "unbound_token",
            Self::NoName => "no_name",
            Self::OtherNode { .. } => "other_node",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}

impl NodeProof {
    /// Checks that the evidence proves the requested node.
    ///
    /// # Errors
    /// When it does not, or cannot be checked now.
    pub async fn check(
        &self,
        asked: &NodeName,
        evidence: Evidence<'_>,
    ) -> Result<Proved, ProofError> {
        let other = |proved: &str| ProofError::OtherNode {
            asked: asked.to_string(),
            proved: proved.to_owned(),
        };
        match self {
            Self::Token(proof) => {
                let agent = proof
                    .agent(evidence.token.ok_or(ProofError::NoToken)?)
                    .await?;
                if agent.node != *asked {
                    return Err(other(agent.node.as_str()));
                }
                Ok(Proved {
                    agent_pod: Some(agent.pod_uid),
                })
            }
            Self::Certificate => {
                let named = certificate::nodes(&evidence.names);
                if named.contains(asked) {
                    return Ok(Proved::default());
                }
                Err(named
                    .first()
                    .map_or(ProofError::NoName, |node| other(node.as_str())))
            }
            Self::None => Ok(Proved::default()),
        }
    }
}
