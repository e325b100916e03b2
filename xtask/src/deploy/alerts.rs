//! `deploy/prometheus` and `deploy/grafana`, checked by promtool and against the programs' metrics.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use toolchain::{Plan, exec, find_program, workspace};

use suites::metrics;

/// Adds promtool.
pub(crate) fn plan(plan: &mut Plan) {
    let checks = "promtool, which checks alerts and the dashboards' queries";
    plan.program("promtool", "prometheus", checks);
}

/// Sections of a runbook, in this order.
const HEADINGS: [&str; 6] = [
    "## What it means",
    "## Impact",
    "## Severity",
    "## Diagnose",
    "## Mitigate",
    "## Related",
];
/// What Grafana puts in place of variables.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "5m"), ("$instance", ".*")];

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: Labels,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Labels {
    severity: String,
}

#[derive(Deserialize)]
struct Annotations {
    runbook_url: String,
}

#[derive(Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panel {
    title: String,
    description: String,
    targets: Vec<Target>,
    field_config: FieldConfig,
}

#[derive(Deserialize)]
struct Target {
    expr: String,
}

#[derive(Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Deserialize)]
struct Defaults {
    unit: String,
    thresholds: Thresholds,
}

#[derive(Deserialize)]
struct Thresholds {
    steps: Vec<serde_json::Value>,
}

/// Checks all of it.
#[expect(clippy::print_stdout, reason = "for whoever reads what was checked")]
pub(super) fn check() -> Result<()> {
    let known = known_names()?;
    let folder = workspace().join("deploy/prometheus");
    promtool(&folder, &["check", "rules", "alerts.yaml"])?;
    promtool(&folder, &["test", "rules", "alerts_test.yaml"])?;
    let rules = read(&folder.join("alerts.yaml"))?;
    let tests = read(&folder.join("alerts_test.yaml"))?;
    let rules: Rules = serde_saphyr::from_str(&rules).context("alerts.yaml")?;
    let rules: Vec<_> = rules.groups.iter().flat_map(|group| &group.rules).collect();
    for Rule {
        alert,
        expr,
        labels,
        annotations,
    } in &rules
    {
        exist(expr, &known).with_context(|| alert.clone())?;
        ensure!(
            tests.contains(&format!("{{alertname=\"{alert}\"}}")),
            "no test makes {alert} fire"
        );
        runbook(alert, &labels.severity, &annotations.runbook_url)?;
    }
    println!(
        "alerts: {} alerts, each with a test that it fires and a runbook",
        rules.len()
    );
    dashboards(&known)
}

/// Names of all series that the programs can have.
fn known_names() -> Result<BTreeSet<String>> {
    let mut known = BTreeSet::from(["up".to_owned()]);
    for (program, tls_side) in metrics::PROGRAMS {
        for (name, metric) in metrics::of(program, tls_side)? {
            if metric.kind == "histogram" {
                known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            } else {
                known.insert(name);
            }
        }
    }
    // The prometheus crate's own, on Linux.
    known.extend(
        [
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
        ]
        .map(str::to_owned),
    );
    Ok(known)
}

/// Each metric that a query names is one of these.
fn exist(query: &str, known: &BTreeSet<String>) -> Result<()> {
    let mut outside = String::new();
    for (at, part) in query.split('"').enumerate() {
        if at % 2 == 0 {
            outside.push_str(part);
        }
    }
    let words = outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["kiam_", "grpc_", "process_"];
    let mut named = words
        .filter(|word| *word == "up" || prefixes.iter().any(|prefix| word.starts_with(prefix)));
    let first = named.next().context("it names no metric")?;
    let unknown = [first]
        .into_iter()
        .chain(named)
        .find(|word| !known.contains(*word));
    ensure!(unknown.is_none(), "no program has the metric {unknown:?}");
    Ok(())
}

fn runbook(alert: &str, severity: &str, url: &str) -> Result<()> {
    ensure!(
        url == format!("docs/runbooks/{alert}.md"),
        "{alert}: its runbook is called {url}"
    );
    let text = read(&workspace().join(url))?;
    ensure!(
        text.starts_with(&format!("# {alert}\n")),
        "{url}: its title"
    );
    let mut at = 0;
    for heading in HEADINGS {
        let found = text.get(at..).and_then(|rest| rest.find(heading));
        at +=
            found.with_context(|| format!("{url}: {heading:?} is missing or not in its place"))?;
    }
    let reaction = match severity {
        "critical" => "Page",
        "warning" | "info" => "Ticket",
        other => bail!("{alert}: unknown severity {other:?}"),
    };
    let stated = format!("**{reaction}** (`severity: {severity}`)");
    ensure!(text.contains(&stated), "{url}: must say {stated:?}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "for whoever reads what was checked")]
fn dashboards(known: &BTreeSet<String>) -> Result<()> {
    let folder = workspace().join("deploy/grafana");
    let mut rules = "groups:\n  - name: queries\n    rules:\n".to_owned();
    let (mut panels, mut queries) = (0, 0);
    let entries = std::fs::read_dir(&folder);
    for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let dashboard: Dashboard = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{} is no dashboard", path.display()))?;
        for panel in dashboard.panels {
            let Panel {
                title,
                description,
                targets,
                field_config: FieldConfig { defaults },
            } = panel;
            let name = format!("{}: {title}", path.display());
            ensure!(!description.is_empty(), "{name} has no description");
            ensure!(!defaults.unit.is_empty(), "{name} has no unit");
            ensure!(
                !defaults.thresholds.steps.is_empty(),
                "{name} has no threshold"
            );
            ensure!(!targets.is_empty(), "{name} shows nothing");
            panels += 1;
            for Target { expr } in targets {
                exist(&expr, known).with_context(|| name.clone())?;
                let expr = VARIABLES
                    .iter()
                    .fold(expr, |expr, (name, value)| expr.replace(name, value));
                // One record for each, as promtool takes no two of one name and expression.
                let expr = serde_json::to_string(&expr)?;
                writeln!(rules, "      - {{record: 'query:{queries}', expr: {expr}}}")?;
                queries += 1;
            }
        }
    }
    ensure!(
        panels > 0,
        "there are no dashboards in {}",
        folder.display()
    );
    let scratch = tempfile::tempdir()?;
    std::fs::write(scratch.path().join("queries.yaml"), rules)?;
    promtool(scratch.path(), &["check", "rules", "queries.yaml"])?;
    println!("alerts: {queries} queries of {panels} panels parse and name metrics that exist");
    Ok(())
}

fn promtool(folder: &Path, arguments: &[&str]) -> Result<()> {
    let Some(promtool) = find_program("promtool") else {
        bail!("there is no promtool in PATH");
    };
    let mut command = Command::new(promtool);
    exec(command.current_dir(folder).args(arguments)).map(drop)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_query_are_those_outside_of_its_strings() {
        let known = BTreeSet::from(["kiam_a_total".to_owned()]);
        exist(r#"rate(kiam_a_total{x="kiam_b_total"}[5m])"#, &known).unwrap();
        let error = exist("sum(kiam_b_total) / kiam_a_total", &known).unwrap_err();
        assert!(error.to_string().contains("kiam_b_total"), "{error}");
        assert!(exist("1 + 1", &known).is_err());
    }
}
