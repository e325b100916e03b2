//! Which node is calling.

mod agent_pod;
mod certificate;
mod remembered;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use kiam_common::tls::PeerNames;

use super::NodeName;
pub use token::{ReviewError, ReviewMetrics, Reviewed, TokenProof, TokenReviews, Tokens};

/// What a call brings that may prove its node.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// The names in the client's certificate, which the handshake has verified.
    pub names: PeerNames,
    /// The service-account token in the call's metadata.
    pub token: Option<&'a str>,
}

/// How a call proves its node.
#[derive(Debug, Clone)]
pub enum NodeProof {
    /// By a token of the agent's service account, bound to the agent's pod.
    Token(Arc<TokenProof>),
    /// By a name in the client's certificate.
    Certificate,
    /// Not at all: any agent may ask for any node.
    None,
}

/// What a proof holds on to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proved {
    /// The UID of the agent's pod, where that is the proof: when the pod goes, so does the proof.
    pub agent_pod: Option<Box<str>>,
}

/// Why a call has not proved its node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// There is no token.
    #[error(
        "the call has no service-account token; start the agent with --token-file, or the server with another --node-authorization"
    )]
    NoToken,
    /// The API refuses the token.
    #[error("the Kubernetes API does not accept the agent's token: {problem}")]
    Refused {
        /// What the API said.
        problem: String,
    },
    /// The token is somebody else's.
    #[error("the token is of {user}; agents are {expected}")]
    OtherAccount {
        /// Whose it is.
        user: String,
        /// Whose it must be.
        expected: String,
    },
    /// The token is not bound to a pod, or to one that is not known.
    #[error("the token proves no node: {problem}")]
    Unbound {
        /// What is missing.
        problem: &'static str,
    },
    /// The certificate names no node.
    #[error(
        "the client's certificate names no node; it needs the DNS name NODE.node.kiam or the URI spiffe://DOMAIN/node/NODE"
    )]
    NoName,
    /// The proof is of another node.
    #[error("the call asks for node {asked} and proves that it comes from {proved}")]
    OtherNode {
        /// The node that was asked for.
        asked: String,
        /// The node that was proved.
        proved: String,
    },
    /// It could not be checked now.
    #[error("the token cannot be checked now: {problem}")]
    Unavailable {
        /// Why.
        problem: String,
    },
}

impl ProofError {
    /// For metrics.
    #[must_use]
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
    /// Checks that the evidence proves the node that was asked for.
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
