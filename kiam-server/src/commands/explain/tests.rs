//! Explanations of every obstacle between a pod and its credentials.

use std::sync::Arc;

use super::steps::explain;
use super::*;
use crate::cluster::PodContext;
use crate::cluster::object::{Annotations, Namespace, ServiceAccount};
use crate::permitted::{Anchoring, Permitted};
use crate::status::{HeldCredentials, StsFailure};
use crate::testing::{pod, settings};

const ARN: &str = "arn:aws:iam::123456789012:role/reader";

fn context(of_pod: Option<&str>, of_account: Option<&str>, permitted: Option<&str>) -> PodContext {
    let mut pod = pod("uid-1", "web", "till", "node-1");
    pod.annotations = Annotations {
        role: of_pod.map(Box::from),
        external_id: Some("hush".into()),
        ..Annotations::default()
    }
    .boxed();
    PodContext {
        pod: Arc::new(pod),
        namespace: Some(Arc::new(Namespace {
            name: "web".into(),
            permitted: Permitted::compile(permitted, Anchoring::Whole),
        })),
        service_account: Some(Arc::new(ServiceAccount {
            namespace: "web".into(),
            name: "default".into(),
            role: of_account.map(Box::from),
        })),
    }
}

fn status(outcome: &str, credentials: Option<HeldCredentials>) -> Server {
    Server::Status(Box::new(PodStatus {
        namespace: "web".to_owned(),
        name: "till".to_owned(),
        node: Some("node-1".to_owned()),
        attached: true,
        guarded: true,
        outcome: outcome.to_owned(),
        reason: None,
        credentials,
        role_base_arn: None,
    }))
}

fn held(left: Option<u64>, failure: Option<&str>) -> Option<HeldCredentials> {
    Some(HeldCredentials {
        role: ARN.to_owned(),
        session_name: "kiam-kiam".to_owned(),
        age_seconds: left.map(|_| 60),
        expires_in_seconds: left,
        failure: failure.map(|kind| StsFailure {
            kind: kind.to_owned(),
            error: "not authorized to perform: sts:AssumeRole".to_owned(),
            retry_in_seconds: 30,
        }),
    })
}

fn unreachable() -> Server {
    Server::Unreachable("cannot connect to 127.0.0.1:9620".to_owned())
}

#[test]
fn every_obstacle_is_named_with_a_remedy() {
    let granted = || context(Some("reader"), None, Some(".*/reader"));
    for (context, asked, server, verdict, parts) in [
        (
            granted(),
            None,
            unreachable(),
            Verdict::Granted,
            ["of the pod", "matches arn", "--server"],
        ),
        (
            context(None, Some("reader"), Some(".*")),
            None,
            unreachable(),
            Verdict::Granted,
            ["service account web/default; the pod has none", ARN, "1h"],
        ),
        (
            context(None, None, Some(".*")),
            None,
            unreachable(),
            Verdict::NoRole,
            [
                "neither the pod nor",
                "To do: annotate",
                "iam.amazonaws.com/role",
            ],
        ),
        (
            context(Some("reader"), None, Some(".*/writer")),
            None,
            unreachable(),
            Verdict::Forbidden,
            [
                "\".*/writer\"",
                "To do: namespace web does not permit",
                "change the expression",
            ],
        ),
        (
            context(Some("reader"), None, None),
            None,
            unreachable(),
            Verdict::Forbidden,
            ["web has no annotation", "To do:", "add one"],
        ),
        (
            context(Some("arn:foo"), None, Some(".*")),
            None,
            unreachable(),
            Verdict::Forbidden,
            ["\"arn:foo\"", "does not name a role", "To do:"],
        ),
        (
            granted(),
            Some("/reader"),
            unreachable(),
            Verdict::Granted,
            ["is the role of the pod", "kiam-kiam", "external ID"],
        ),
        (
            granted(),
            Some("writer"),
            unreachable(),
            Verdict::OtherRole,
            [
                "no  requested",
                "\"writer\": the role of the pod is arn",
                "To do: request arn",
            ],
        ),
        (
            granted(),
            None,
            status("granted", held(Some(3000), None)),
            Verdict::Granted,
            [
                "the agent of node-1 is connected, and guards",
                "credentials valid for 3000 s",
                "ok  STS",
            ],
        ),
        (
            granted(),
            None,
            status("granted", held(None, Some("access_denied"))),
            Verdict::Failing,
            [
                "no  STS",
                "sts:AssumeRole (next attempt in 30 s)",
                "To do: allow the role of the server",
            ],
        ),
        (
            granted(),
            None,
            // Renewals fail while the credentials are still valid.
            status("granted", held(Some(900), Some("throttled"))),
            Verdict::Granted,
            [
                "ok  STS",
                "credentials valid for 900 s; throttled",
                "kiam-kiam",
            ],
        ),
        (
            granted(),
            None,
            status("forbidden", None),
            Verdict::Undecided,
            ["decided forbidden", "To do: run this command", "lag"],
        ),
        (
            granted(),
            None,
            Server::UnknownPod,
            Verdict::Undecided,
            ["does not know the pod", "To do:", "watch_errors"],
        ),
    ] {
        let explanation = explain(&context, &settings(), asked, &server);
        let text = explanation.text();
        assert_eq!(explanation.verdict, verdict, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&explanation).unwrap();
        assert_eq!(
            json["steps"].as_array().unwrap().len(),
            explanation.steps.len()
        );
        assert!(
            !text.contains("hush") && !json.to_string().contains("hush"),
            "{text}"
        );
    }
}
