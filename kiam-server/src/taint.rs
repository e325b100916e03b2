//! A taint that keeps pods off nodes that no agent guards.
//!
//! Nodes are created with the taint (by the configuration of the node pool). The server that the
//! agent of a node is connected to removes the taint once the agent guards the node, and annotates
//! the node. The taint is added again to an annotated node that has had no pod of an agent for
//! `--node-taint-after`. All servers decide from the same objects, so that they do not undo each
//! other's changes: docs/adr/0006.
//!
//! ```text
//! state        nodes and pods of agents, and the changes that follow
//! api          two watches and a patch
//! controller   applies the changes
//! ```

mod api;
mod controller;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub(crate) use controller::{TaintController, TaintMetrics};

/// The annotation of nodes from which the taint was removed.
pub(crate) const GUARDED: &str = "kiam.io/agent-guarded";

/// The key and effect of a taint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    key: String,
    effect: Effect,
}

/// The effect of a taint on pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// The error of an invalid taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid taint {text:?}; write KEY or KEY:EFFECT, for example kiam.io/agent-not-ready:NoSchedule, with the effect NoSchedule, PreferNoSchedule or NoExecute"
)]
pub struct TaintError {
    text: String,
}

impl Effect {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

impl FromStr for Taint {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || TaintError {
            text: text.to_owned(),
        };
        let (key, effect) = match text.split_once(':') {
            None => (text, Effect::NoSchedule),
            Some((key, effect)) => {
                let effects = [
                    Effect::NoSchedule,
                    Effect::PreferNoSchedule,
                    Effect::NoExecute,
                ];
                let named = effects.into_iter().find(|known| known.as_str() == effect);
                (key, named.ok_or_else(error)?)
            }
        };
        // Rejects KEY=VALUE and typing errors early; the API validates the rest.
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if key.is_empty() || !key.chars().all(inner) {
            return Err(error());
        }
        Ok(Self {
            key: key.to_owned(),
            effect,
        })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, self.effect.as_str())
    }
}
