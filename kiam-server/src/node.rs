//! The node stream: pods and credentials for the agent of one node, after the proof of the node.
//!
//! ```text
//! service   the gRPC call: checks the proof, then runs a session
//! proof     proof of the node: by service account token, by certificate, or none
//! session   one stream: decides about the pods of the node, and sends the changes
//! message   the wire format of messages
//! streams   the open streams, their number and lifetime
//! ```

mod message;
pub mod proof;
mod service;
mod session;
mod streams;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use service::Service;
pub use session::{Closed, Message, Sender, Session};
pub use streams::{ConnectedAgent, StreamAge, StreamMetrics, Streams};

/// The validated name of a Kubernetes node: a DNS subdomain (Kubernetes documentation, "Object
/// Names and IDs").
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NodeName(Arc<str>);

/// The error of an invalid node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid node name {text:?}; expected 1 to 253 of the characters a-z 0-9 . - with a letter or digit at both ends"
)]
pub struct NodeNameError {
    text: String,
}

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner =
            |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        let valid = bytes.len() <= 253
            && bytes.iter().all(inner)
            && edge(bytes.first())
            && edge(bytes.last());
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(NodeNameError {
                text: text.chars().take(64).collect(),
            })
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
