//! The status as HTML, and as text for the terminal.

use std::fmt::Write as _;

use kiam_common::page::{document as whole, element, format_seconds, table};

use super::{Line, Pods, Report, Server, Setting};

const COLUMNS: [&str; 6] = ["Pod", "State", "Role", "Expires in", "IMDSv1", "Why"];
/// Maximum width of a column in the terminal; longer cells push the rest of their line.
const MAX_WIDTH: usize = 60;

/// Returns the status as an HTML document.
pub(super) fn document(report: &Report) -> String {
    let parts = [
        element("h1", &title(report)),
        element("p", &setting(&report.setting)),
        element("p", &server(&report.server)),
        element("p", &counts(&report.pods)),
        table(COLUMNS, report.pods.listed.iter().map(cells)),
    ];
    whole("kiam-agent", &parts.concat())
}

/// Returns the status as text without control characters, whatever a pod or a server has sent.
pub(crate) fn text(report: &Report) -> String {
    let rows: Vec<[String; 6]> = report.pods.listed.iter().map(cells).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.chars().count()).max();
        let heading = COLUMNS.get(column).map_or(0, |name| name.len());
        longest.unwrap_or(0).max(heading).min(MAX_WIDTH)
    };
    let mut text = String::new();
    for line in [
        title(report),
        setting(&report.setting),
        server(&report.server),
        counts(&report.pods),
        String::new(),
    ] {
        let _ = writeln!(text, "{line}");
    }
    let mut line = |cells: [&str; 6]| {
        let padded = cells.iter().zip(0..);
        let padded = padded.map(|(cell, column)| format!("{cell:<0$}", width(column)));
        let line = padded.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    if !rows.is_empty() {
        line(COLUMNS);
    }
    for row in &rows {
        line(row.each_ref().map(String::as_str));
    }
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

fn title(report: &Report) -> String {
    let Setting { version, node, .. } = &report.setting;
    format!("kiam-agent {version} on {node}")
}

fn setting(setting: &Setting) -> String {
    let Setting {
        redirect,
        guard,
        host_network_pods,
        imds_v2,
        ..
    } = setting;
    format!(
        "Redirect: {redirect}; guard: {guard}; hostNetwork pods: {host_network_pods}; IMDSv2: {imds_v2}."
    )
}

fn server(server: &Server) -> String {
    match server {
        Server::Starting => "No server has answered yet.".to_owned(),
        Server::Synced { address, seconds } => {
            format!(
                "Connected to the server at {address} for {}.",
                format_seconds(*seconds)
            )
        }
        Server::Disconnected { problem, seconds } => format!(
            "NOT CONNECTED to a server for {}; pods get what is known here: {problem}.",
            format_seconds(*seconds)
        ),
    }
}

fn counts(pods: &Pods) -> String {
    let Pods {
        known,
        served,
        without_role,
        unserved,
        listed,
    } = pods;
    format!(
        "Pods: {known}; {served} get credentials, {without_role} have no role, {unserved} get nothing; {} shown.",
        listed.len()
    )
}

fn cells(line: &Line) -> [String; 6] {
    let v1 = line.imds_v1.iter();
    let v1 = v1.map(|client| format!("{} {}", client.sdk, client.requests));
    let v1 = v1.collect::<Vec<_>>().join(", ");
    let expires = line.expires_in_seconds.map(format_seconds);
    [
        format!("{}/{}", line.namespace, line.name),
        line.state.to_string(),
        line.role.clone().unwrap_or_default(),
        expires.unwrap_or_default(),
        v1,
        line.why.clone().unwrap_or_default(),
    ]
}
