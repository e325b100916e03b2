//! Checks of the chart: the objects it makes of many values, and the values it refuses.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{admission, helm};
use testbed::cluster::{ControlPlane, Objects};
use testbed::sandbox::Sandbox;

/// Values that are refused, and the fix that the refusal names.
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
    (
        "agent.extraCapabilities={CAP_PERFMON}",
        "/agent/extraCapabilities/0",
    ),
];

const AGENT: &str = "DaemonSet/kiam-agent";
const SERVER: &str = "Deployment/kiam-server";
const TOLERATIONS: &str = "/spec/template/spec/tolerations";
const CAPABILITIES: &str = "/spec/template/spec/containers/0/securityContext/capabilities/add";

/// Lints and renders the defaults and each of the chart's value sets; by name.
#[expect(clippy::print_stdout, reason = "for the terminal")]
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

/// Bad values are refused, and the refusal names the fix.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn refusals() -> Result<()> {
    for (values, expected) in REFUSED {
        match helm::template(&["--set", values]) {
            Ok(_) => bail!("the chart takes {values}"),
            Err(error) => {
                let message = format!("{error:#}");
                ensure!(
                    message.contains(expected),
                    "{values} is refused by\n{message}"
                );
            }
        }
    }
    println!("chart: {} bad values are refused", REFUSED.len());
    Ok(())
}

/// A value, an object, a field of it, and what the chart makes of the value there.
fn fields() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let tolerated = |effect: &str| json!([{ "key": "kiam.io/agent-not-ready", "operator": "Exists", "effect": effect }]);
    let key = "server.nodeTaint=kiam.io/agent-not-ready";
    let execute = "server.nodeTaint=kiam.io/agent-not-ready:NoExecute";
    vec![
        ("server.nodeTaint=", SERVER, TOLERATIONS, Value::Null),
        (key, SERVER, TOLERATIONS, tolerated("NoSchedule")),
        (execute, SERVER, TOLERATIONS, tolerated("NoExecute")),
        (
            "server.nodeTaint=kiam.io/agent-not-ready,server.tolerations[0].operator=Exists,\
             server.tolerations[0].key=mine",
            SERVER,
            TOLERATIONS,
            json!([
                { "key": "mine", "operator": "Exists" },
                { "key": "kiam.io/agent-not-ready", "operator": "Exists", "effect": "NoSchedule" },
            ]),
        ),
        // An agent tolerates every taint; where users have restricted that, still this one.
        (key, AGENT, TOLERATIONS, json!([{ "operator": "Exists" }])),
        (
            "server.nodeTaint=kiam.io/agent-not-ready:NoExecute,agent.tolerations=null",
            AGENT,
            TOLERATIONS,
            tolerated("NoExecute"),
        ),
        (
            "agent.redirect=ebpf",
            AGENT,
            CAPABILITIES,
            json!(["BPF", "NET_ADMIN", "DAC_READ_SEARCH"]),
        ),
        (
            "agent.extraCapabilities={PERFMON,SYS_RESOURCE}",
            AGENT,
            CAPABILITIES,
            json!([
                "BPF",
                "NET_ADMIN",
                "DAC_READ_SEARCH",
                "PERFMON",
                "SYS_RESOURCE"
            ]),
        ),
        (
            "agent.extraCapabilities={PERFMON}",
            AGENT,
            "/spec/template/spec/initContainers/0/securityContext/capabilities/add",
            json!([
                "BPF",
                "NET_ADMIN",
                "DAC_READ_SEARCH",
                "SYS_ADMIN",
                "PERFMON"
            ]),
        ),
        (
            "agent.extraCapabilities={PERFMON},agent.redirect=iptables,agent.host.interface=cali+",
            AGENT,
            CAPABILITIES,
            json!(["NET_ADMIN", "NET_RAW", "PERFMON"]),
        ),
    ]
}

/// Values reach the fields that they are for.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) fn values_reach_fields() -> Result<()> {
    let fields = fields();
    for (values, object, field, expected) in &fields {
        let rendered = helm::template(&["--set", values])?;
        let object = find(&rendered, object)?;
        let found = object.pointer(field).unwrap_or(&Value::Null);
        ensure!(
            found == expected,
            "with {values} {field} is {found}, and not {expected}"
        );
    }
    println!("chart: {} values reach their fields", fields.len());
    Ok(())
}

/// One of the rendered objects, by `Kind/name`.
fn find(rendered: &str, wanted: &str) -> Result<Value> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(rendered).context("cannot read helm's output")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |object: &Value| {
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        format!("{kind}/{name}")
    };
    let found = objects.into_iter().find(|object| name(object) == wanted);
    found.with_context(|| format!("the chart makes no {wanted}"))
}

/// Lets a real kube-apiserver check all objects, and follow the admission policy.
pub(super) fn dry_run(rendered: &[(String, String)]) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let control = sandbox.control().netns().clone();
    control.block_on(async || {
        let mut plane = ControlPlane::start(&sandbox)?;
        let objects = Objects::new(plane.ready().await?);
        let checked = async {
            check(&objects, rendered).await?;
            admission::check(&plane, &objects).await
        };
        let checked = checked.await;
        plane.stop()?;
        checked
    })?
}

#[expect(clippy::print_stdout, reason = "for the terminal")]
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
