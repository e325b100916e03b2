//! The report as a page of tables, without styles or scripts: everything that is not a tag of the
//! page's own is escaped.

use super::{Held, Node, Refused, Report, readable};

const BEGIN: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
                     <title>kiam-server</title></head><body>\n";
const END: &str = "</body></html>\n";

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
    [
        BEGIN.to_owned(),
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
        END.to_owned(),
    ]
    .concat()
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

fn table<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let row = |tag: &str, cells: &[&str]| {
        let cells: String = cells.iter().map(|cell| element(tag, cell)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = row("th", &columns);
    let rows: String = rows
        .map(|cells| row("td", &cells.each_ref().map(String::as_str)))
        .collect();
    format!("<table border=\"1\">\n{head}{rows}</table>\n")
}

fn element(tag: &str, text: &str) -> String {
    format!("<{tag}>{}</{tag}>\n", escaped(text))
}

/// As text between tags; control characters would be no valid HTML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character if character.is_control() => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}
