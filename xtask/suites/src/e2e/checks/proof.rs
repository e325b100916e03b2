//! An agent gets the pods of its node, and proves which node is its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::super::fixture::{AGENT_ACCOUNT, AUDIENCE, Fixture, ROLE, SYSTEM};
use super::super::report::Facts;
use super::tools::{answers, is};
use testbed::cluster::{Kubelet, PodTemplate, Running};

const LOG_LIMIT: Duration = Duration::from_secs(15);

pub(super) async fn other_node(fixture: &mut Fixture) -> Result<Facts> {
    let kubelet = fixture.kubelets[1].clone();
    let (pod, own_token) = fixture.agent_pod(&kubelet).await?;
    let template = PodTemplate {
        namespace: "billing",
        name: "elsewhere",
        annotations: &[(ROLE, "billing-reports")],
        ..Default::default()
    };
    let elsewhere = kubelet.run(&template).await?;
    let nothing = || {
        let parts = ["kiam-server"];
        answers(elsewhere.place(), "billing-reports", 503, &parts).map(drop)
    };

    // It requests another node's pods with its own token.
    let other = ["--node-name=node-1"];
    let expected = "asks for node node-1, but proves that it comes from node-2";
    let asks = refused(
        fixture, &kubelet, &pod, &own_token, &other, expected, nothing,
    )?;

    // It has taken the token of another node's agent.
    let folder = fixture.sandbox.folder("stolen")?;
    let stolen = fixture.kubelets[0]
        .project_token(&fixture.agent_pod, AGENT_ACCOUNT, AUDIENCE, &folder)
        .await?;
    let expected = "asks for node node-2, but proves that it comes from node-1";
    let steals = refused(fixture, &kubelet, &pod, &stolen, &[], expected, nothing)?;

    // A request for its own pods succeeds.
    let mut agent = fixture.start_agent(&kubelet, &pod, &own_token, &[])?;
    agent.ready()?;
    is(fixture, elsewhere.place(), "billing-reports")?;
    agent.stop()?;
    kubelet.stop(elsewhere).await?;
    kubelet.stop(pod).await?;
    Ok(vec![asks, steals])
}

pub(super) async fn other_tokens(fixture: &mut Fixture) -> Result<Facts> {
    let kubelet = fixture.kubelets[1].clone();
    let (pod, _) = fixture.agent_pod(&kubelet).await?;
    let bound = Some((pod.name(), pod.uid()));
    let objects = &fixture.objects;
    let agent = (SYSTEM, AGENT_ACCOUNT);
    // A pod of the node, though not the agent's; with a token for the right audience.
    let template = PodTemplate {
        namespace: "billing",
        name: "curious",
        ..Default::default()
    };
    let curious = kubelet.run(&template).await?;
    let curious_bound = Some((curious.name(), curious.uid()));
    let curious_account = ("billing", "default");
    // An agent's that was.
    let template = PodTemplate {
        namespace: SYSTEM,
        name: "kiam-agent-before",
        service_account: AGENT_ACCOUNT,
        host_network: true,
        ..Default::default()
    };
    let before = kubelet.run(&template).await?;
    let before_bound = Some((before.name(), before.uid()));
    let before_token = objects.token(agent, Some(AUDIENCE), before_bound).await?;
    kubelet.stop(before).await?;

    let not_accepted = "rejects the token of the agent";
    let tokens = [
        (
            "of another audience",
            objects.token(agent, Some("vault"), bound).await?,
            not_accepted,
        ),
        (
            "for the Kubernetes API",
            objects.token(agent, None, bound).await?,
            not_accepted,
        ),
        (
            "of another service account",
            objects
                .token(curious_account, Some(AUDIENCE), curious_bound)
                .await?,
            "the token belongs to system:serviceaccount:billing:default",
        ),
        (
            "of no pod",
            objects.token(agent, Some(AUDIENCE), None).await?,
            "the token does not prove a node",
        ),
        ("of a pod that is gone", before_token, not_accepted),
        ("that is none", "not.a.token".to_owned(), not_accepted),
    ];
    let mut facts = Facts::new();
    for (what, token, expected) in tokens {
        let path = fixture.sandbox.folder("wrong")?.join("token");
        std::fs::write(&path, &token).context("cannot write a token")?;
        let refusal = refused(fixture, &kubelet, &pod, &path, &[], expected, || Ok(()));
        facts.push(format!("{what}: {}", refusal.context(what)?));
    }
    kubelet.stop(curious).await?;
    kubelet.stop(pod).await?;
    Ok(facts)
}

/// Checks that the server refuses an agent on a node and logs why, and that the node's pods get no
/// credentials. Returns the reason.
fn refused(
    fixture: &Fixture,
    kubelet: &Kubelet,
    pod: &Running,
    token: &Path,
    flags: &[&str],
    expected: &str,
    nothing: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let server = fixture.server()?;
    let mark = server.mark();
    let agent = fixture.start_agent(kubelet, pod, token, flags)?;
    let reason = |line: &str| {
        let (_, reason) = line.split_once("refused a node stream: ")?;
        let (reason, _fields) = reason.rsplit_once(" node=")?;
        reason.contains(expected).then(|| reason.to_owned())
    };
    let reason = server.wait_for_after(mark, expected, LOG_LIMIT, reason)?;
    // The agent's operator learns it as well.
    let expected_line = |line: &str| line.contains(expected).then_some(());
    agent
        .program()
        .wait_for(expected, LOG_LIMIT, expected_line)?;
    ensure!(agent.admin("/readyz")?.status != 200, "the agent is ready");
    nothing()?;
    let ended = agent.stop()?;
    let logs = ended.stderr + &server.output();
    let secret = std::fs::read_to_string(token).context("cannot read a token")?;
    ensure!(!logs.contains(secret.trim()), "a token is in a log");
    Ok(reason)
}
