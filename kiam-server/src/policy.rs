//! The policies, which decide from Kubernetes objects alone which pod may have which role.
//!
//! 1. The annotation of the pod, or that of its service account, names the role.
//! 2. The expression in `iam.amazonaws.com/permitted` of the namespace matches the ARN of the role.
//!
//! Every refusal has one line for the owner of the pod: which policy refused, and which annotation
//! to change. The module does not depend on kube, tonic or AWS.

mod session;
mod session_name;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kiam_common::role::{BaseArn, resolve};

use crate::cluster::PodContext;
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
/// The annotation of a pod with the external ID that the trust policy of its role requires.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// The annotation of a pod with the duration of its sessions.
pub const SESSION_DURATION: &str = "iam.amazonaws.com/session-duration";

/// The longest quotation of an annotation, in characters.
const MAX_QUOTED: usize = 100;

/// Settings that apply to all pods.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Completes short role names.
    pub base_arn: Option<BaseArn>,
    pub session: SessionSettings,
}

/// The decision of the policies about a pod. A granted pod gets the credentials of the identity.
pub type Outcome = kiam_common::outcome::Outcome<Arc<Identity>>;

/// Returns the role in the annotations of a pod, unresolved, and whether the annotation is that of
/// the pod itself rather than of its service account.
pub fn annotated(context: &PodContext) -> Option<(&str, bool)> {
    let of_pod = context.pod.annotations.as_deref();
    let of_pod = of_pod.and_then(|annotations| annotations.role.as_deref());
    let of_account = || context.service_account.as_ref()?.role.as_deref();
    match of_pod {
        Some(role) => Some((role, true)),
        None => of_account().map(|role| (role, false)),
    }
}

/// Decides about one pod.
pub fn decide(context: &PodContext, settings: &Settings) -> Outcome {
    let PodContext { pod, namespace, .. } = context;
    let Some((name, of_pod)) = annotated(context) else {
        return Outcome::NoRole;
    };
    let holder = if of_pod {
        format!("pod {}/{}", pod.namespace, pod.name)
    } else {
        format!("service account {}/{}", pod.namespace, pod.service_account)
    };
    let forbidden = |reason: String| Outcome::Forbidden {
        role: truncated(name).into(),
        reason: reason.into(),
    };

    let role = match resolve(name, settings.base_arn.as_ref()) {
        Ok(role) => role,
        Err(error) => {
            let quoted = quoted(name);
            return forbidden(format!(
                "the annotation {ROLE} of {holder}, {quoted}, does not name a role: {error}"
            ));
        }
    };
    let Some(namespace) = namespace else {
        return Outcome::Undecided {
            awaiting: format!("namespace {}", pod.namespace).into(),
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
             match the whole ARN; change the expression, or the role of the pod",
            namespace.permitted.annotations(),
            quoted(expression)
        )),
        Verdict::Invalid(problem) => forbidden(format!(
            "namespace {name} permits no roles: its {} is not a valid expression: {problem}",
            namespace.permitted.annotations()
        )),
    }
}

/// Truncates a text for a log or an Event.
fn truncated(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Quotes a truncated text, and escapes control characters: untrusted text must not control a log.
fn quoted(text: &str) -> String {
    format!("{:?}", truncated(text))
}
