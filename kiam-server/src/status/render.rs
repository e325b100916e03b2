//! The report as a page of tables, without styles or scripts: everything that is not a tag of the
//! page's own is escaped.

use kiam_common::page::{document, element, readable, table};

use super::{Held, Node, Refused, Report};

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let Report {
        version,
        synced,
        objects,
        nodes,
        identities,
        pods,
    } = report;
    let known = objects.iter();
    let known = known.map(|objects| format!("{} of kind {}", objects.known, objects.kind));
    let known = known.collect::<Vec<_>>().join(", ");
    let read = if *synced { "has" } else { "has not yet" };
    let parts = [
        element("h1", &format!("kiam-server {version}")),
        element("p", &format!("The cluster {read} been read: {known}.")),
        element("h2", "Nodes attached to this replica"),
        element(
            "p",
            &format!(
                "{}, of which {} without a guard; {} shown.",
                nodes.attached,
                nodes.unguarded,
                nodes.listed.len()
            ),
        ),
        table(
            ["Node", "Guarded", "Agent", "Stream's age"],
            nodes.listed.iter().map(node),
        ),
        element("h2", "Identities"),
        element(
            "p",
            &format!(
                "{}, of which {} fail and {} have expired; {} shown.",
                identities.held,
                identities.failing,
                identities.expired,
                identities.listed.len()
            ),
        ),
        table(
            ["Role", "Session", "Age", "Expires in", "Failure"],
            identities.listed.iter().map(identity),
        ),
        element("h2", "Pods that get nothing"),
        element(
            "p",
            &format!(
                "Of {} pods on attached nodes {} are granted a role, {} have none, {} are \
                 forbidden theirs, {} are undecided; {} shown.",
                pods.examined,
                pods.granted,
                pods.without_role,
                pods.forbidden,
                pods.undecided,
                pods.listed.len()
            ),
        ),
        table(["Pod", "Node", "Why"], pods.listed.iter().map(refused)),
    ];
    document("kiam-server", &parts.concat())
}

fn node(node: &Node) -> [String; 4] {
    [
        node.node.clone(),
        if node.guarded { "yes" } else { "NO" }.to_owned(),
        node.agent_version.clone(),
        readable(node.stream_age_seconds),
    ]
}

fn identity(held: &Held) -> [String; 5] {
    let time = |seconds: Option<u64>| seconds.map_or_else(|| "–".to_owned(), readable);
    let failure = held.failure.as_ref().map_or_else(String::new, |failure| {
        let again = readable(failure.retry_in_seconds);
        format!("{}: {} (again in {again})", failure.kind, failure.error)
    });
    [
        held.role.clone(),
        held.session_name.clone(),
        time(held.age_seconds),
        time(held.expires_in_seconds),
        failure,
    ]
}

fn refused(pod: &Refused) -> [String; 3] {
    [
        format!("{}/{}", pod.namespace, pod.name),
        pod.node.clone(),
        pod.reason.clone(),
    ]
}
