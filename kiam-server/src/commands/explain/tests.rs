//! Each thing that can stand in a pod's way is named, with what to do.

use std::sync::Arc;

use super::judge::judge;
use super::*;
use crate::cluster::Member;
use crate::cluster::object::{Annotations, Namespace, ServiceAccount};
use crate::permitted::{Anchoring, Permitted};
use crate::status::{Failing, Held};
use crate::testing::{pod, settings};

const ARN: &str = "arn:aws:iam::123456789012:role/reader";

fn member(of_pod: Option<&str>, of_account: Option<&str>, permitted: Option<&str>) -> Member {
    let mut pod = pod("uid-1", "web", "till", "node-1");
    pod.annotations = Annotations {
        role: of_pod.map(Box::from),
        external_id: Some("hush".into()),
        ..Annotations::default()
    }
    .boxed();
    Member {
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

fn status(outcome: &str, credentials: Option<Held>) -> Server {
    Server::Knows(Box::new(PodStatus {
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

fn held(left: Option<u64>, failure: Option<&str>) -> Option<Held> {
    Some(Held {
        role: ARN.to_owned(),
        session_name: "kiam-kiam".to_owned(),
        age_seconds: left.map(|_| 60),
        expires_in_seconds: left,
        failure: failure.map(|kind| Failing {
            kind: kind.to_owned(),
            error: "not authorized to perform: sts:AssumeRole".to_owned(),
            retry_in_seconds: 30,
        }),
    })
}

fn silent() -> Server {
    Server::Silent("127.0.0.1:9620 cannot be connected to".to_owned())
}

#[test]
fn whatever_decides_is_named_with_what_to_do() {
    let granted = || member(Some("reader"), None, Some(".*/reader"));
    for (member, asked, server, verdict, parts) in [
        (
            granted(),
            None,
            silent(),
            Verdict::Granted,
            ["by the pod's annotation", "matches arn", "--server"],
        ),
        (
            member(None, Some("reader"), Some(".*")),
            None,
            silent(),
            Verdict::Granted,
            ["service account web/default; the pod has none", ARN, "1h"],
        ),
        (
            member(None, None, Some(".*")),
            None,
            silent(),
            Verdict::NoRole,
            [
                "neither the pod nor",
                "To do: annotate",
                "iam.amazonaws.com/role",
            ],
        ),
        (
            member(Some("reader"), None, Some(".*/writer")),
            None,
            silent(),
            Verdict::Forbidden,
            [
                "\".*/writer\"",
                "To do: namespace web does not permit",
                "change the expression",
            ],
        ),
        (
            member(Some("reader"), None, None),
            None,
            silent(),
            Verdict::Forbidden,
            ["web has no annotation", "To do:", "add one"],
        ),
        (
            member(Some("arn:foo"), None, Some(".*")),
            None,
            silent(),
            Verdict::Forbidden,
            ["\"arn:foo\"", "names no role", "To do:"],
        ),
        (
            granted(),
            Some("/reader"),
            silent(),
            Verdict::Granted,
            ["which is its role", "kiam-kiam", "external id"],
        ),
        (
            granted(),
            Some("writer"),
            silent(),
            Verdict::OtherRole,
            [
                "no  asked for",
                "\"writer\": its role is arn",
                "To do: ask for arn",
            ],
        ),
        (
            granted(),
            None,
            status("granted", held(Some(3000), None)),
            Verdict::Granted,
            [
                "node-1's is attached, and guards",
                "credentials for 3000 s",
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
                "sts:AssumeRole (asked again in 30 s)",
                "To do: let the role's trust",
            ],
        ),
        (
            granted(),
            None,
            // It fails, and nobody notices yet.
            status("granted", held(Some(900), Some("throttled"))),
            Verdict::Granted,
            [
                "ok  STS",
                "credentials for 900 s more; throttled",
                "kiam-kiam",
            ],
        ),
        (
            granted(),
            None,
            status("forbidden", None),
            Verdict::Undecided,
            ["says forbidden", "To do: give this command", "lag"],
        ),
        (
            granted(),
            None,
            Server::Ignorant,
            Verdict::Undecided,
            ["does not know the pod", "To do:", "watch_errors"],
        ),
    ] {
        let explanation = judge(&member, &settings(), asked, &server);
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
