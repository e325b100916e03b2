//! The steps of an explanation, in the order in which they decide.

use kiam_common::duration;
use kiam_common::role::resolve;

use super::{Explanation, Server, Step, Verdict};
use crate::cluster::PodContext;
use crate::identity::Identity;
use crate::permitted::Permitted;
use crate::policy::{Outcome, PERMITTED, ROLE, Settings, annotated, decide};
use crate::status::{HeldCredentials, PodStatus};

/// Explains a pod; with `asked`, whether it gets that role.
pub(super) fn explain(
    context: &PodContext,
    settings: &Settings,
    asked: Option<&str>,
    server: &Server,
) -> Explanation {
    let outcome = decide(context, settings);
    let mut steps = vec![role(context)];
    let (mut verdict, mut to_do) = match &outcome {
        Outcome::NoRole => (
            Verdict::NoRole,
            Some(format!(
                "annotate the pod or its service account with {ROLE}"
            )),
        ),
        Outcome::Undecided { awaiting } => {
            (Verdict::Undecided, Some(format!("wait for {awaiting}")))
        }
        Outcome::Forbidden { reason, .. } => (Verdict::Forbidden, Some(reason.to_string())),
        Outcome::Granted(_) => (Verdict::Granted, None),
    };
    if verdict != Verdict::NoRole {
        steps.push(permitted(context, &outcome));
    }
    if let Outcome::Granted(identity) = &outcome {
        steps.push(session(identity));
        if let Some(asked) = asked {
            let own = is_role_of(asked, identity, settings);
            steps.push(requested_role(asked, identity, own));
            if !own {
                verdict = Verdict::OtherRole;
                to_do = Some(format!(
                    "request {}, or change the annotation {ROLE} of the pod",
                    identity.role
                ));
            }
        }
    }
    let (of_server, worse) = server_steps(&outcome, server);
    steps.extend(of_server);
    if let (Verdict::Granted, Some((worse, hint))) = (verdict, worse) {
        (verdict, to_do) = (worse, Some(hint));
    }
    Explanation {
        pod: format!("{}/{}", context.pod.namespace, context.pod.name),
        verdict,
        steps,
        to_do,
    }
}

fn step(about: &'static str, in_the_way: bool, found: String) -> Step {
    Step {
        about,
        found,
        in_the_way,
    }
}

fn role(context: &PodContext) -> Step {
    let pod = &context.pod;
    let account = format!("service account {}/{}", pod.namespace, pod.service_account);
    let (nothing, found) = match annotated(context) {
        Some((role, true)) => (
            false,
            format!("{role:?}, from the annotation {ROLE} of the pod"),
        ),
        Some((role, false)) => (
            false,
            format!("{role:?}, from the annotation {ROLE} of {account}; the pod has none"),
        ),
        None => (
            true,
            format!("none: neither the pod nor {account} has the annotation {ROLE}"),
        ),
    };
    step("role", nothing, found)
}

fn permitted(context: &PodContext, outcome: &Outcome) -> Step {
    let namespace = &context.pod.namespace;
    let annotation = match context.namespace.as_ref().map(|found| &found.permitted) {
        None => format!("{namespace} is not known"),
        Some(Permitted::Nothing) => format!("{namespace} has no annotation {PERMITTED}"),
        Some(Permitted::Invalid {
            expression,
            problem,
            annotations,
        }) => format!("the {annotations} of {namespace}, {expression:?}, is invalid: {problem}"),
        Some(Permitted::Matching {
            expression,
            annotations,
            ..
        }) => format!("the {annotations} of {namespace}, {expression:?}"),
    };
    match outcome {
        Outcome::Granted(identity) => step(
            "namespace",
            false,
            format!("{annotation} matches {}", identity.role),
        ),
        Outcome::Forbidden { reason, .. } => {
            step("namespace", true, format!("{annotation}; {reason}"))
        }
        Outcome::NoRole | Outcome::Undecided { .. } => step("namespace", true, annotation),
    }
}

/// Omits the value of the external ID, which is a secret.
fn session(identity: &Identity) -> Step {
    let external = identity.external_id.as_ref();
    let external = external.map_or("", |_| ", with an external ID");
    let lasting = duration::format(identity.duration);
    let name = &identity.session_name;
    step("session", false, format!("{name}, for {lasting}{external}"))
}

fn is_role_of(asked: &str, identity: &Identity, settings: &Settings) -> bool {
    let full = resolve(asked, settings.base_arn.as_ref());
    full.as_ref() == Ok(&identity.role) || identity.role.matches(asked)
}

fn requested_role(asked: &str, identity: &Identity, own: bool) -> Step {
    let found = if own {
        format!("{asked:?} is the role of the pod")
    } else {
        format!("{asked:?}: the role of the pod is {}", identity.role)
    };
    step("requested", !own, found)
}

/// Returns the steps that the response of a server adds, and the verdict and remedy if it prevents
/// the credentials of a granted role.
fn server_steps(outcome: &Outcome, server: &Server) -> (Vec<Step>, Option<(Verdict, String)>) {
    let status = match server {
        Server::Unreachable(why) => {
            let found = format!("unreachable: {why}; set --server to include errors of STS");
            return (vec![step("server", false, found)], None);
        }
        Server::UnknownPod => {
            let found = "does not know the pod".to_owned();
            let hint = "check the watches of the server: kiam_k8s_watch_errors_total";
            let worse = (Verdict::Undecided, hint.to_owned());
            return (vec![step("server", true, found)], Some(worse));
        }
        Server::Status(status) => status,
    };
    let PodStatus {
        outcome: label,
        reason,
        credentials,
        ..
    } = &**status;
    let mut steps = Vec::new();
    let mut worse = None;
    if label != outcome.as_label() {
        let why = reason.as_deref().unwrap_or("no reason given");
        steps.push(step("server", true, format!("decided {label}: {why}")));
        let hint = "run this command with the flags of the server; if they are the same, check the lag \
                    of its watches: kiam_k8s_watch_lag_seconds";
        worse = Some((Verdict::Undecided, hint.to_owned()));
    }
    steps.push(agent(status));
    if let Some(held) = credentials {
        let none_valid = held.expires_in_seconds.is_none_or(|left| left == 0);
        steps.push(sts(held, none_valid));
        if let Some(failure) = held.failure.as_ref().filter(|_| none_valid) {
            worse = Some((Verdict::Failing, advice(&failure.kind).to_owned()));
        }
    }
    (steps, worse)
}

fn agent(status: &PodStatus) -> Step {
    let PodStatus {
        node,
        attached,
        guarded,
        ..
    } = status;
    let found = match (node, attached, guarded) {
        (None, ..) => "the pod is not bound to a node yet".to_owned(),
        (Some(node), false, _) => {
            format!("the agent of {node} is not connected to this server; it may use another one")
        }
        (Some(node), true, true) => {
            format!("the agent of {node} is connected, and guards the node")
        }
        (Some(node), true, false) => {
            format!("the agent of {node} is connected, but does not guard the node")
        }
    };
    step("agent", node.is_none(), found)
}

fn sts(held: &HeldCredentials, none_valid: bool) -> Step {
    let left = match held.expires_in_seconds {
        None => "no credentials yet".to_owned(),
        Some(0) => "the credentials have expired".to_owned(),
        Some(seconds) => format!("credentials valid for {seconds} s"),
    };
    let failure = held.failure.as_ref().map(|failure| {
        let (kind, error, retry) = (&failure.kind, &failure.error, failure.retry_in_seconds);
        format!("; {kind}: {error} (next attempt in {retry} s)")
    });
    let in_the_way = none_valid && failure.is_some();
    step("STS", in_the_way, left + &failure.unwrap_or_default())
}

/// Returns the remedy for a kind of STS error.
fn advice(kind: &str) -> &'static str {
    match kind {
        "access_denied" => {
            "allow the role of the server in the trust policy of this role, and sts:AssumeRole on this role in the policy of the role of the server (docs/iam.md); or create the role"
        }
        "rejected" => {
            "correct the parameter that STS rejects: the duration, name or tags of the session (docs/sessions.md)"
        }
        "throttled" => "wait: STS throttles the account; see kiam_sts_errors_total",
        "server_credentials" => "correct the AWS credentials of the server (docs/iam.md)",
        "network" => "check the network from the server to STS: DNS, proxy, endpoint, --region",
        _ => "wait: STS has an internal fault; see kiam_sts_errors_total",
    }
}
