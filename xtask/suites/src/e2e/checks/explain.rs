//! `kiam-server explain`, on a real API beside a running server.

use anyhow::{Context as _, Result, ensure};

use super::super::fixture::{Fixture, ROLE};
use super::super::report::Facts;
use super::tools::is;
use testbed::cluster::PodTemplate;

pub(super) async fn answers(fixture: &mut Fixture) -> Result<Facts> {
    for (namespace, name, role) in [
        ("billing", "explained", Some("billing-explained")),
        ("orders", "misled", Some("billing-explained")),
        ("billing", "roleless", None),
    ] {
        let role = role.map(|role| (ROLE, role));
        let template = PodTemplate {
            namespace,
            name,
            annotations: role.as_slice(),
            ..Default::default()
        };
        let place = fixture.pod(&template).await?;
        if name == "explained" {
            is(fixture, &place, "billing-explained")?;
        }
    }
    let mut facts = Facts::new();
    for (pod, flags, code, parts) in [
        // No --role-base-arn: it is the running server's.
        (
            "billing/explained",
            &[][..],
            0,
            [
                "connected, and guards",
                "ok  STS",
                "matches arn:aws:iam::123456789012:role/billing-explained",
            ],
        ),
        (
            "billing/explained",
            &["--role=billing-writer"],
            1,
            ["no  requested", "To do: request", "the role of the pod is"],
        ),
        (
            "orders/misled",
            &["--role=billing-explained"],
            1,
            [
                "no  namespace",
                "iam.amazonaws.com/permitted",
                "To do: namespace orders",
            ],
        ),
        (
            "billing/roleless",
            &["--json"],
            1,
            ["\"verdict\": \"no_role\"", "\"in_the_way\": true", "to_do"],
        ),
        (
            "billing/absent",
            &[],
            2,
            ["there is no pod absent", "billing", "kiam-server: "],
        ),
    ] {
        let ended = fixture.explain(pod, flags)?;
        let output = ended.stdout + &ended.stderr;
        ensure!(
            ended.status.code() == Some(code),
            "{pod}: {}: {output}",
            ended.status
        );
        for part in parts {
            ensure!(output.contains(part), "{pod}: no {part:?} in\n{output}");
        }
        let first = output.lines().next().context("it prints nothing")?;
        if !flags.contains(&"--json") {
            facts.push(format!("exit code {code}: {first}"));
        }
    }
    Ok(facts)
}
