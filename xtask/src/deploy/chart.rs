//! The chart's checks: what it makes of many values, and which it refuses.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use super::helm;
use crate::cluster::{ControlPlane, Objects};
use crate::sandbox::Sandbox;

/// Values that are refused, and what the refusal says to do.
const REFUSED: &[(&str, &str)] = &[
    (
        "agent.containerCredentialsAddress=x",
        "/agent/containerCredentialsAddress",
    ),
    ("psp.create=true", "pod-security.kubernetes.io/enforce"),
    ("tls.mode=secret", "agent.tlsSecret and server.tlsSecret"),
    ("agent.tlsSecret=mine", "set tls.mode=secret"),
    ("agent.tlsFiles.key=x", "put the files into a Secret"),
    ("agent.redirect=iptables", "agent.host.interface"),
    ("agent.image.repository=quay.io/uswitch/kiam", "kiam v4"),
    ("server.service.targetPort=443", "set port only"),
    ("server.updateStrategy=OnDelete", "leave it out"),
    ("server.sessionDuration=15", "/server/sessionDuration"),
    ("server.roleBaseArn=role/", "/server/roleBaseArn"),
    ("server.nodeTaint=kiam.io/x=y", "/server/nodeTaint"),
    ("agent.imdsV2=maybe", "/agent/imdsV2"),
    ("agent.hots.port=1", "'hots' not allowed"),
];

/// Lints and renders the defaults and each of the chart's value sets; by name.
#[expect(clippy::print_stdout, reason = "for whoever reads what was checked")]
pub(super) fn render_all() -> Result<Vec<(String, String)>> {
    let mut rendered = vec![("defaults".to_owned(), render(&[])?)];
    for path in value_sets()? {
        let values = format!("--values={}", path.display());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = render(&[&values]).with_context(|| name.clone().into_owned())?;
        rendered.push((name.into_owned(), text));
    }
    ensure!(rendered.len() > 10, "there are value sets in ci/");
    println!(
        "chart: helm lint and helm template of {} value sets",
        rendered.len()
    );
    Ok(rendered)
}

fn render(values: &[&str]) -> Result<String> {
    helm::lint(values)?;
    helm::template(values)
}

fn value_sets() -> Result<Vec<PathBuf>> {
    let folder = helm::chart().join("ci");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths: Result<Vec<_>, _> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect();
    let mut paths = paths?;
    paths.sort();
    Ok(paths)
}

/// Bad values are refused, and the refusal tells what to do.
#[expect(clippy::print_stdout, reason = "for whoever reads what was checked")]
pub(super) fn refusals() -> Result<()> {
    for (values, expected) in REFUSED {
        match helm::template(&["--set", values]) {
            Ok(_) => bail!("the chart takes {values}"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains(expected), "{values} is refused by\n{said}");
            }
        }
    }
    println!("chart: {} bad values are refused", REFUSED.len());
    Ok(())
}

/// Lets a real kube-apiserver check all objects.
pub(super) fn dry_run(rendered: &[(String, String)]) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let control = sandbox.control().netns().clone();
    control.block_on(async || {
        let mut plane = ControlPlane::start(&sandbox)?;
        let objects = Objects::new(plane.ready().await?);
        let checked = check(&objects, rendered).await;
        plane.stop()?;
        checked
    })?
}

#[expect(clippy::print_stdout, reason = "for whoever reads what was checked")]
async fn check(objects: &Objects, rendered: &[(String, String)]) -> Result<()> {
    objects.namespace("monitoring", &[]).await?;
    let version = objects.client().apiserver_version().await?.git_version;
    for (name, text) in rendered {
        let (checked, unknown) = objects
            .try_apply(text)
            .await
            .with_context(|| name.clone())?;
        let unknown: Vec<_> = unknown.into_iter().collect();
        let notice = if unknown.is_empty() {
            String::new()
        } else {
            format!("; unknown to it, so not checked: {}", unknown.join(", "))
        };
        println!("chart: Kubernetes {version} takes {checked} objects of {name}{notice}");
    }
    Ok(())
}
