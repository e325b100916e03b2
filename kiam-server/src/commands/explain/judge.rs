//! What decides about a pod, step by step, in the order in which it decides.

use kiam_common::duration;
use kiam_common::role::resolve;

use super::{Explanation, Server, Step, Verdict};
use crate::cluster::Member;
use crate::identity::Identity;
use crate::permitted::Permitted;
use crate::policy::{Outcome, PERMITTED, ROLE, Settings, annotated, decide};
use crate::status::{Held, PodStatus};

/// Explains.
pub(super) fn judge(
    member: &Member,
    settings: &Settings,
    asked: Option<&str>,
    server: &Server,
) -> Explanation {
    let outcome = decide(member, settings);
    let mut steps = vec![named(member)];
    let (mut verdict, mut to_do) = match &outcome {
        Outcome::NoRole => (
            Verdict::NoRole,
            Some(format!(
                "annotate the pod, or its service account, with {ROLE}"
            )),
        ),
        Outcome::Undecided { awaiting } => {
            (Verdict::Undecided, Some(format!("wait for {awaiting}")))
        }
        Outcome::Forbidden { reason, .. } => (Verdict::Forbidden, Some(reason.clone())),
        Outcome::Granted(_) => (Verdict::Granted, None),
    };
    if verdict != Verdict::NoRole {
        steps.push(permitted(member, &outcome));
    }
    if let Outcome::Granted(identity) = &outcome {
        steps.push(session(identity));
        if let Some(asked) = asked {
            let own = is(asked, identity, settings);
            steps.push(role_asked(asked, identity, own));
            if !own {
                verdict = Verdict::OtherRole;
                to_do = Some(format!(
                    "ask for {}, or change the pod's annotation {ROLE}",
                    identity.role
                ));
            }
        }
    }
    let (told, worse) = told(&outcome, server);
    steps.extend(told);
    if let (Verdict::Granted, Some((worse, hint))) = (verdict, worse) {
        (verdict, to_do) = (worse, Some(hint));
    }
    Explanation {
        pod: format!("{}/{}", member.pod.namespace, member.pod.name),
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

fn named(member: &Member) -> Step {
    let pod = &member.pod;
    let account = format!("service account {}/{}", pod.namespace, pod.service_account);
    let (nothing, found) = match annotated(member) {
        Some((role, true)) => (false, format!("{role:?}, by the pod's annotation {ROLE}")),
        Some((role, false)) => (
            false,
            format!("{role:?}, by the annotation {ROLE} of {account}; the pod has none"),
        ),
        None => (
            true,
            format!("none: neither the pod nor {account} has the annotation {ROLE}"),
        ),
    };
    step("role", nothing, found)
}

fn permitted(member: &Member, outcome: &Outcome) -> Step {
    let namespace = &member.pod.namespace;
    let annotation = match member.namespace.as_ref().map(|found| &found.permitted) {
        None => format!("{namespace} is not known"),
        Some(Permitted::Nothing) => format!("{namespace} has no annotation {PERMITTED}"),
        Some(Permitted::Invalid {
            expression,
            problem,
            annotations,
        }) => format!("{namespace}'s {annotations} {expression:?} cannot be used: {problem}"),
        Some(Permitted::Matching {
            expression,
            annotations,
            ..
        }) => format!("{namespace}'s {annotations} {expression:?}"),
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

/// The external id is between the pod's owner and AWS.
fn session(identity: &Identity) -> Step {
    let external = identity.external_id.as_ref();
    let external = external.map_or("", |_| ", with an external id");
    let lasting = duration::format(identity.duration);
    let name = &identity.session_name;
    step("session", false, format!("{name}, for {lasting}{external}"))
}

fn is(asked: &str, identity: &Identity, settings: &Settings) -> bool {
    let full = resolve(asked, settings.base_arn.as_ref());
    full.as_ref() == Ok(&identity.role) || identity.role.is_spelled(asked)
}

fn role_asked(asked: &str, identity: &Identity, own: bool) -> Step {
    let found = if own {
        format!("{asked:?}, which is its role")
    } else {
        format!("{asked:?}: its role is {}", identity.role)
    };
    step("asked for", !own, found)
}

/// What a server adds: steps, and what it makes of a pod that the policies grant its role.
fn told(outcome: &Outcome, server: &Server) -> (Vec<Step>, Option<(Verdict, String)>) {
    let status = match server {
        Server::Silent(why) => {
            let found = format!("not asked: {why}; name one by --server to learn what STS says");
            return (vec![step("server", false, found)], None);
        }
        Server::Ignorant => {
            let found = "does not know the pod".to_owned();
            let hint = "see whether the server's watches lag or break: kiam_k8s_watch_errors_total";
            let worse = (Verdict::Undecided, hint.to_owned());
            return (vec![step("server", true, found)], Some(worse));
        }
        Server::Knows(status) => status,
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
        let why = reason.as_deref().unwrap_or("without a reason");
        steps.push(step("server", true, format!("says {label}: {why}")));
        let hint = "give this command the server's own flags; if they are the same, see whether the \
                    server's watches lag: kiam_k8s_watch_lag_seconds";
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
        (None, ..) => "the pod is on no node yet".to_owned(),
        (Some(node), false, _) => {
            format!("{node}'s has no stream to this server; it may have one to another")
        }
        (Some(node), true, true) => format!("{node}'s is attached, and guards the node"),
        (Some(node), true, false) => {
            format!("{node}'s is attached, and does not guard the node")
        }
    };
    step("agent", node.is_none(), found)
}

fn sts(held: &Held, none_valid: bool) -> Step {
    let left = match held.expires_in_seconds {
        None => "no credentials yet".to_owned(),
        Some(0) => "the credentials have expired".to_owned(),
        Some(seconds) => format!("credentials for {seconds} s more"),
    };
    let failure = held.failure.as_ref().map(|failure| {
        let (kind, error, retry) = (&failure.kind, &failure.error, failure.retry_in_seconds);
        format!("; {kind}: {error} (asked again in {retry} s)")
    });
    let in_the_way = none_valid && failure.is_some();
    step("STS", in_the_way, left + &failure.unwrap_or_default())
}

/// What to do, by the kind of an error of STS.
fn advice(kind: &str) -> &'static str {
    match kind {
        "access_denied" => {
            "let the role's trust policy name the server's role, and the server's role's own policy allow sts:AssumeRole on it (docs/iam.md); or the role does not exist"
        }
        "rejected" => {
            "mend what STS does not take: the session's duration, name or tags (docs/sessions.md)"
        }
        "throttled" => "wait: STS throttles the account; see kiam_sts_errors_total",
        "server_credentials" => "mend the server's own credentials (docs/iam.md)",
        "network" => "see whether the server reaches STS: DNS, proxy, endpoint, --region",
        _ => "wait: STS has a fault of its own; see kiam_sts_errors_total",
    }
}
