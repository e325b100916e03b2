//! Rights of kiam's service accounts, as reported by the API itself.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authorization::v1::{
    SelfSubjectRulesReview, SelfSubjectRulesReviewSpec, SubjectRulesReviewStatus,
};
use kube::api::{Api, PostParams};

use super::super::fixture::{AGENT_ACCOUNT, Fixture, SERVER_ACCOUNT, SYSTEM};
use super::super::report::Facts;

/// Verb, API group, resource.
const SERVER_RIGHTS: [&str; 11] = [
    "create authentication.k8s.io/tokenreviews",
    "create events.k8s.io/events",
    "get /namespaces",
    "get /pods",
    "get /serviceaccounts",
    "list /namespaces",
    "list /pods",
    "list /serviceaccounts",
    "watch /namespaces",
    "watch /pods",
    "watch /serviceaccounts",
];

pub(super) async fn exact(fixture: &mut Fixture) -> Result<Facts> {
    let anybody = ("billing", "default");
    for namespace in ["billing", SYSTEM] {
        let everybodys = rights(fixture, anybody, namespace).await?;
        ensure!(!everybodys.is_empty(), "the API reports no rights");
        let server = rights(fixture, (SYSTEM, SERVER_ACCOUNT), namespace).await?;
        let server: Vec<_> = server.difference(&everybodys).collect();
        ensure!(
            server == SERVER_RIGHTS.each_ref(),
            "in {namespace} the server may {server:?}"
        );
        let agent = rights(fixture, (SYSTEM, AGENT_ACCOUNT), namespace).await?;
        let agent: Vec<_> = agent.difference(&everybodys).collect();
        ensure!(agent.is_empty(), "in {namespace} the agent may {agent:?}");
    }
    // With these it has worked so far: nothing was refused.
    let output = fixture.server()?.output();
    let refused = output.lines().find(|line| line.contains("is forbidden: "));
    ensure!(refused.is_none(), "the server is refused: {refused:?}");
    Ok(vec![format!("the server: {}", SERVER_RIGHTS.join(", "))])
}

pub(super) async fn rights(
    fixture: &Fixture,
    account: (&str, &str),
    namespace: &str,
) -> Result<BTreeSet<String>> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let api = Api::<SelfSubjectRulesReview>::all(fixture.client_of(account).await?);
    let answer = api.create(&PostParams::default(), &review).await?;
    let SubjectRulesReviewStatus {
        incomplete,
        resource_rules,
        non_resource_rules,
        ..
    } = answer.status.context("the review has no status")?;
    ensure!(!incomplete, "the API does not report all rights");
    let mut rights = BTreeSet::new();
    for rule in resource_rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let names = rule.resource_names.iter().flatten();
                let names: String = names.map(|name| format!(" {name}")).collect();
                let right = |verb| format!("{verb} {group}/{resource}{names}");
                rights.extend(rule.verbs.iter().map(right));
            }
        }
    }
    for rule in non_resource_rules {
        for url in rule.non_resource_urls.iter().flatten() {
            rights.extend(rule.verbs.iter().map(|verb| format!("{verb} {url}")));
        }
    }
    Ok(rights)
}
