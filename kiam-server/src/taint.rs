//! A taint that keeps pods from nodes that no agent guards.
//!
//! Nodes come with it (the node pool's configuration). Whichever server an agent has told that it
//! guards its node takes it off, and leaves an annotation there; where that is, and the API has had
//! no agent's pod on the node for long, it is put back. All servers judge that by the same
//! objects, so that several do not fight: docs/adr/0006.
//!
//! ```text
//! state   what is known of nodes and agents' pods, and what is to be done about it
//! api     the edge to kube: two watches, and the patch
//! ```

mod api;
mod keeper;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use keeper::{Keeper, TaintMetrics};

/// The annotation of nodes that the taint was taken off.
pub const GUARDED: &str = "kiam.io/agent-guarded";

/// A taint's key and effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    key: String,
    effect: Effect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// Why a text is no taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no taint; write KEY or KEY:EFFECT, as in kiam.io/agent-not-ready:NoSchedule, where EFFECT is NoSchedule, PreferNoSchedule or NoExecute"
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
        // The API checks the rest; this keeps KEY=VALUE and slips of the pen from the API.
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
