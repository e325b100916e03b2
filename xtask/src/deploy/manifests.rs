//! The plain manifests in `deploy/manifests`: the chart's objects with its defaults, for
//! users without helm.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use toolchain::workspace;

use super::{helm, is_current};

/// Secrets with certificates, which users create: certificates do not belong in files.
const VALUES: &str =
    "tls.mode=secret,agent.tlsSecret=kiam-agent-tls,server.tlsSecret=kiam-server-tls";
const COMMAND: &str = "cargo xtask manifests";
const HEAD: &str = "# Made from deploy/helm/kiam by `cargo xtask manifests`; change it there.\n";

/// The files, and the chart's templates that each is made of.
const FILES: &[(&str, &[&str])] = &[
    ("rbac.yaml", &["serviceaccounts", "rbac"]),
    ("server.yaml", &["server-deployment", "server-service"]),
    ("agent.yaml", &["agent-daemonset"]),
];

/// Optional manifests: the files, their templates, and the values that they need.
const OPTIONS: &[(&str, &[&str], &str)] = &[
    (
        "node-taint.yaml",
        &["rbac-node-taint"],
        "server.nodeTaint=kiam.io/agent-not-ready",
    ),
    (
        "probe-host-policy.yaml",
        &["probe-host-policy"],
        "probeHostPolicy.enabled=true",
    ),
];

const KUSTOMIZATION: &str = "kustomization.yaml";

/// Writes them.
pub(super) fn write() -> Result<()> {
    for (path, text) in make()? {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that the manifests match the chart.
pub(super) fn check() -> Result<()> {
    let made = make()?;
    made.iter()
        .try_for_each(|(path, text)| is_current(path, text, COMMAND))
}

fn make() -> Result<Vec<(PathBuf, String)>> {
    let rendered = helm::template(&["--set", VALUES])?;
    let folder = workspace().join("deploy/manifests");
    let mut files: Vec<_> = FILES
        .iter()
        .map(|(name, templates)| (folder.join(name), collect(&rendered, templates)))
        .collect();
    for (name, templates, value) in OPTIONS {
        let rendered = helm::template(&["--set", VALUES, "--set", value])?;
        files.push((folder.join(name), collect(&rendered, templates)));
    }
    files.push((folder.join(KUSTOMIZATION), kustomization()));
    Ok(files)
}

/// Documents of these templates.
fn collect(rendered: &str, templates: &[&str]) -> String {
    let mut text = HEAD.to_owned();
    for document in rendered.split("---\n").filter(|text| !text.is_empty()) {
        let Some((source, document)) = document.split_once('\n') else {
            continue;
        };
        let from = |name: &&str| source.ends_with(&format!("/templates/{name}.yaml"));
        if templates.iter().any(from) {
            // It is not helm that manages these.
            let lines = document
                .lines()
                .filter(|line| !line.contains("app.kubernetes.io/managed-by"));
            text.push_str("---\n");
            lines.for_each(|line| {
                text.push_str(line.trim_end());
                text.push('\n');
            });
        }
    }
    text
}

fn kustomization() -> String {
    let mut text = format!(
        "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: kube-system\nresources:\n"
    );
    for (name, _) in FILES {
        text.push_str(&format!("  - {name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_go_to_the_file_of_their_template() {
        let rendered = "---\n# Source: kiam/templates/rbac.yaml\nkind: A\n\
            ---\n# Source: kiam/templates/server-service.yaml\nkind: B\n  app.kubernetes.io/managed-by: Helm\n\
            ---\n# Source: kiam/templates/rbac.yaml\nkind: C\n";
        assert_eq!(
            collect(rendered, &["rbac"]),
            format!("{HEAD}---\nkind: A\n---\nkind: C\n")
        );
        assert_eq!(
            collect(rendered, &["server-service"]),
            format!("{HEAD}---\nkind: B\n")
        );
    }
}
