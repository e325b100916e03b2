//! `deploy/prometheus` and `deploy/grafana`, checked by promtool and against the programs' metrics.

mod queries;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use toolchain::{Plan, exec, find_program, workspace};

use queries::Known;

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
/// Values of Grafana's variables.
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

/// Runs all checks of alerts and dashboards.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn check() -> Result<()> {
    let known = Known::ask()?;
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
        known.check(expr).with_context(|| alert.clone())?;
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
    ensure!(text.contains(&stated), "{url}: must contain {stated:?}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "for the terminal")]
fn dashboards(known: &Known) -> Result<()> {
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
                known.check(&expr).with_context(|| name.clone())?;
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
    println!(
        "alerts: {queries} queries of {panels} panels parse, and name metrics and labels that exist"
    );
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
