//! The node stream: what the agent of one node is told, and the proof that it is that node's.
//!
//! ```text
//! service   the gRPC call: proof first, then a session
//! proof     which node is calling: by service-account token, by certificate, or by its word
//! session   one stream: the node's part of the cluster, decided, compared with what was sent
//! message   the wire form of what a session says
//! streams   how many there may be, and for how long
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
pub use streams::{Attached, StreamAge, StreamMetrics, Streams};

/// A Kubernetes node's name, checked: a DNS subdomain (Kubernetes API conventions, names).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NodeName(Arc<str>);

/// Why a text is no node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no node's name: 1 to 253 of the characters a-z 0-9 . - beginning and ending with a letter or digit"
)]
pub struct NodeNameError {
    text: String,
}

impl NodeName {
    /// The name.
    #[must_use]
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
