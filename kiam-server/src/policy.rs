//! Which pod may have which role: the two policies, decided from the objects alone.
//!
//! 1. The pod's own annotation, else its service account's, names the role.
//! 2. The namespace's `iam.amazonaws.com/permitted` expression matches the role's ARN.
//!
//! Every refusal is one line for the pod's owner: what refused, and which annotation to change.
//! The module knows neither kube nor tonic nor AWS.

mod session;
mod session_name;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kiam_common::role::{BaseArn, resolve};

use crate::cluster::Member;
use crate::identity::Identity;
use crate::permitted::Verdict;
pub use session::{SessionSettings, SessionTag};
pub use session_name::session_name;

/// The annotation of a pod or service account that names its role.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// The annotation of a namespace that permits roles.
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// kube2iam's annotation of a namespace that allows roles.
pub const ALLOWED: &str = "iam.amazonaws.com/allowed-roles";
/// The annotation of a pod that names its session.
pub const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// The annotation of a pod with the external id that its role's trust policy asks for.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// The annotation of a pod that says how long its sessions last.
pub const SESSION_DURATION: &str = "iam.amazonaws.com/session-duration";

/// The longest quotation of an annotation, in characters.
const MAX_QUOTED: usize = 100;

/// What is the same for all pods.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Completes short role names.
    pub base_arn: Option<BaseArn>,
    /// How sessions are made.
    pub session: SessionSettings,
}

/// What the policies say of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody asks for a role.
    NoRole,
    /// It gets the credentials of this identity.
    Granted(Arc<Identity>),
    /// It gets nothing.
    Forbidden {
        /// The role as it was asked for, cut to a readable length.
        role: String,
        /// One line: what refused it, and which annotation to change.
        reason: String,
    },
    /// Something that decides is not known yet.
    Undecided {
        /// What that is.
        awaiting: String,
    },
}

impl Outcome {
    /// What [`as_label`](Self::as_label) may say.
    pub const LABELS: [&'static str; 4] = ["no_role", "granted", "forbidden", "undecided"];

    /// For metrics.
    #[must_use]
    pub const fn as_label(&self) -> &'static str {
        let [no_role, granted, forbidden, undecided] = Self::LABELS;
        match self {
            Self::NoRole => no_role,
            Self::Granted(_) => granted,
            Self::Forbidden { .. } => forbidden,
            Self::Undecided { .. } => undecided,
        }
    }
}

/// The role that is named for a pod, as it is spelled, and whether the pod itself names it, and
/// not its service account.
#[must_use]
pub fn annotated(member: &Member) -> Option<(&str, bool)> {
    let of_pod = member.pod.annotations.as_deref();
    let of_pod = of_pod.and_then(|annotations| annotations.role.as_deref());
    let of_account = || member.service_account.as_ref()?.role.as_deref();
    match of_pod {
        Some(role) => Some((role, true)),
        None => of_account().map(|role| (role, false)),
    }
}

/// Decides about one pod.
#[must_use]
pub fn decide(member: &Member, settings: &Settings) -> Outcome {
    let Member { pod, namespace, .. } = member;
    let Some((spelling, of_pod)) = annotated(member) else {
        return Outcome::NoRole;
    };
    let holder = if of_pod {
        format!("pod {}/{}", pod.namespace, pod.name)
    } else {
        format!("service account {}/{}", pod.namespace, pod.service_account)
    };
    let forbidden = |reason| Outcome::Forbidden {
        role: quotable(spelling),
        reason,
    };

    let role = match resolve(spelling, settings.base_arn.as_ref()) {
        Ok(role) => role,
        Err(error) => {
            let quoted = quoted(spelling);
            return forbidden(format!(
                "the annotation {ROLE} of {holder}, {quoted}, names no role: {error}"
            ));
        }
    };
    let Some(namespace) = namespace else {
        return Outcome::Undecided {
            awaiting: format!("namespace {}", pod.namespace),
        };
    };
    let name = &namespace.name;
    match namespace.permitted.verdict(role.as_str()) {
        Verdict::Permitted => match session::identity(role, pod, &settings.session) {
            Ok(identity) => Outcome::Granted(Arc::new(identity)),
            Err(reason) => forbidden(reason),
        },
        Verdict::Nothing => forbidden(format!(
            "namespace {name} permits no roles: it has no annotation {PERMITTED}; add one with a \
             regular expression that matches {role}"
        )),
        Verdict::Other(expression) => forbidden(format!(
            "namespace {name} does not permit {role}: its {}, {}, does not \
             match it from end to end; change the expression, or the pod's role",
            namespace.permitted.annotations(),
            quoted(expression)
        )),
        Verdict::Invalid(problem) => forbidden(format!(
            "namespace {name} permits no roles: its {} is no regular expression: {problem}",
            namespace.permitted.annotations()
        )),
    }
}

/// Cut to a readable length, for a log or an event.
fn quotable(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// In quotation marks, with control characters escaped: a pod must not write into a log.
fn quoted(text: &str) -> String {
    format!("{:?}", quotable(text))
}
