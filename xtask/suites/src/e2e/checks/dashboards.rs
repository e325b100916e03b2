//! The dashboards, with this run's data in a real Prometheus.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::workspace;

use super::super::fixture::{Fixture, ROLE};
use super::super::report::Facts;
use super::super::{dashboard, picture};
use super::tools::{answers, ask, has, seen};
use testbed::cluster::PodTemplate;
use testbed::kiam::METADATA_PORT;
use testbed::probe::{METADATA_SERVICE, Prober};

/// Values of Grafana's variables; rates over half a minute, as the run is short.
const VARIABLES: [(&str, &str); 3] = [
    ("$__rate_interval", "30s"),
    ("[5m]", "[30s]"),
    ("$instance", ".*"),
];
/// Panels with an empty part in a good run, and the reason.
const QUIET: &[(&str, &str)] = &[
    ("Rules restored", "nobody removes rules"),
    (
        "Firewall rule checks",
        "pods are redirected by kernel programs",
    ),
    ("Connections rejected", "no pod has too many"),
    ("Audit records", "they are off"),
    ("STS: failed calls", "moto takes every call"),
    ("Failed calls by kind", "moto takes every call"),
    ("STS calls", "none fails"),
    ("Waits timed out", "no wait times out"),
    (
        "Node streams",
        "no agent is refused, if this check runs alone",
    ),
    (
        "Streams refused",
        "no agent is refused, if this check runs alone",
    ),
];
const PAST: Duration = Duration::from_secs(120);

pub(super) async fn drawn(fixture: &mut Fixture) -> Result<Facts> {
    fixture.prometheus.looks().await?;
    traffic(fixture).await?;
    // Once more, so that there are rates of everything.
    fixture.prometheus.looks().await?;
    let folder = workspace().join("target/dashboards");
    std::fs::create_dir_all(&folder)?;
    let (mut facts, mut empty) = (Facts::new(), Vec::new());
    for dashboard in dashboard::all()? {
        let (mut found, mut queries, mut quiet) = (Vec::new(), 0, Vec::new());
        for panel in &dashboard.panels {
            let mut of_panel = Vec::new();
            for target in &panel.targets {
                let query = VARIABLES
                    .iter()
                    .fold(target.expr.clone(), |query, (name, value)| {
                        query.replace(name, value)
                    });
                let series = fixture.prometheus.ask(&query, PAST).await;
                let series = series.with_context(|| format!("{}: {query}", panel.title))?;
                queries += 1;
                if series.is_empty() {
                    if !QUIET.iter().any(|(title, _why)| *title == panel.title) {
                        empty.push(format!("{}: {}: {query}", dashboard.name, panel.title));
                    }
                    quiet.push(panel.title.clone());
                }
                of_panel.push((target.legend_format.clone(), series));
            }
            found.push(of_panel);
        }
        let file = folder.join(format!("{}.svg", dashboard.name));
        std::fs::write(&file, picture::draw(&dashboard, &found))?;
        let but = if quiet.is_empty() {
            String::new()
        } else {
            format!(", but for: {}", quiet.join(", "))
        };
        facts.push(format!(
            "{}: {queries} queries, each finds series{but}",
            dashboard.name
        ));
    }
    ensure!(
        empty.is_empty(),
        "these find nothing:\n{}",
        empty.join("\n")
    );
    Ok(facts)
}

/// Something of everything, also when this check runs alone.
async fn traffic(fixture: &mut Fixture) -> Result<()> {
    let template = |name, annotations| PodTemplate {
        namespace: "billing",
        name,
        annotations,
        ..PodTemplate::default()
    };
    let served = fixture
        .pod(&template("watched", &[(ROLE, "billing-watched")]))
        .await?;
    seen(|| has(&served, "billing-watched")).await?;
    let without = fixture.pod(&template("without", &[])).await?;
    seen(|| answers(&without, "", 404, &["no role"])).await?;
    let mut refused = template("refused", &[(ROLE, "billing-watched")]);
    refused.namespace = "newcomers";
    let refused = fixture.pod(&refused).await?;
    seen(|| answers(&refused, "", 403, &["permits no roles"])).await?;
    // Its stream ends, and another begins.
    fixture.stop_server()?;
    fixture.start_server()?;
    let prober = Prober::new()?;
    let node = fixture.kubelets[0].node();
    for _ in 0..3 {
        has(&served, "billing-watched")?;
        ask(&without, "")?;
        ask(&refused, "")?;
        // Neither a path nor a port of the real service.
        prober.get(
            &served,
            &format!("{METADATA_SERVICE}/latest/meta-data/instance-id"),
        )?;
        prober.get(&served, "http://169.254.169.254:81/")?;
        // From no pod at all.
        prober.get(
            node.place(),
            &format!("http://{}:{METADATA_PORT}/", node.ip()),
        )?;
        fixture.prometheus.looks().await?;
    }
    Ok(())
}
