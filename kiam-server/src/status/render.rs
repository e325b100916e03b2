//! The report as an HTML page of tables.

use kiam_common::page::{document, element, format_seconds, table};

use super::{HeldCredentials, Node, Refused, Report};

/// Renders the whole page.
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
    let known = known.map(|objects| format!("{} {} objects", objects.known, objects.kind));
    let known = known.collect::<Vec<_>>().join(", ");
    let read = if *synced { "has" } else { "has not" };
    let parts = [
        element("h1", &format!("kiam-server {version}")),
        element(
            "p",
            &format!("This server {read} read the whole cluster: {known}."),
        ),
        element("h2", "Nodes connected to this server"),
        element(
            "p",
            &format!(
                "{} nodes, {} of them unguarded; {} listed.",
                nodes.attached,
                nodes.unguarded,
                nodes.listed.len()
            ),
        ),
        table(
            ["Node", "Guarded", "Agent version", "Age of stream"],
            nodes.listed.iter().map(node),
        ),
        element("h2", "Identities"),
        element(
            "p",
            &format!(
                "{} identities, {} of them failing and {} expired; {} listed.",
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
        element("h2", "Pods without credentials"),
        element(
            "p",
            &format!(
                "{} pods on connected nodes: {} granted, {} without a role, {} forbidden, {} \
                 undecided; {} listed.",
                pods.examined,
                pods.granted,
                pods.without_role,
                pods.forbidden,
                pods.undecided,
                pods.listed.len()
            ),
        ),
        table(["Pod", "Node", "Reason"], pods.listed.iter().map(refused)),
    ];
    document("kiam-server", &parts.concat())
}

fn node(node: &Node) -> [String; 4] {
    [
        node.node.clone(),
        if node.guarded { "yes" } else { "NO" }.to_owned(),
        node.agent_version.clone(),
        format_seconds(node.stream_age_seconds),
    ]
}

fn identity(held: &HeldCredentials) -> [String; 5] {
    let time = |seconds: Option<u64>| seconds.map_or_else(|| "–".to_owned(), format_seconds);
    let failure = held.failure.as_ref().map_or_else(String::new, |failure| {
        let again = format_seconds(failure.retry_in_seconds);
        format!(
            "{}: {} (next attempt in {again})",
            failure.kind, failure.error
        )
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
