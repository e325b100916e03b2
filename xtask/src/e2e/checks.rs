//! What is checked, in this order.

use std::pin::Pin;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, ListParams};

use super::world::{LISTING, World, ask, logs, until};
use crate::cluster::PodTemplate;

const ROLE: &str = "iam.amazonaws.com/role";
const PERMITTED: &str = "iam.amazonaws.com/permitted";

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;
/// A check gives a few words about what it saw.
type Check = for<'a> fn(&'a mut World) -> Outcome<'a>;

/// All checks. They build on each other.
pub(super) const ALL: &[(&str, Check)] = &[
    (
        "kiam-server reads the API with the rights of deploy/, and has no others",
        |world| Box::pin(rights(world)),
    ),
    (
        "an agent is refused another node, and with another's token",
        |world| Box::pin(other_nodes(world)),
    ),
    ("agents prove their nodes by their pods' tokens", |world| {
        Box::pin(agents(world))
    }),
    ("the AWS CLI in each pod is that pod's role", |world| {
        Box::pin(identities(world))
    }),
    (
        "a namespace without the annotation is named in the refusal",
        |world| Box::pin(forbidden(world)),
    ),
    (
        "a pod whose status has no address yet has its credentials",
        |world| Box::pin(no_address(world)),
    ),
    (
        "a changed role, and a withdrawn permission, hold at once",
        |world| Box::pin(changes(world)),
    ),
    ("a deleted pod's grant ends", |world| {
        Box::pin(deleted(world))
    }),
    (
        "with no server running pods keep their credentials, and a new one takes over",
        |world| Box::pin(restart(world)),
    ),
];

async fn rights(world: &mut World) -> Result<String> {
    world.start_server()?;
    let client = world.as_server().await?;
    let secrets = Api::<Secret>::all(client.clone())
        .list(&ListParams::default())
        .await;
    ensure!(is_forbidden(&secrets), "the server may read secrets");
    let pods = Api::<Pod>::namespaced(client, "default");
    let deleted = pods
        .delete("none", &kube::api::DeleteParams::default())
        .await;
    ensure!(is_forbidden(&deleted), "the server may delete pods");
    Ok(String::new())
}

fn is_forbidden<T>(result: &kube::Result<T>) -> bool {
    matches!(result, Err(kube::Error::Api(status)) if status.code == 403)
}

async fn other_nodes(world: &mut World) -> Result<String> {
    let objects = world.objects()?;
    objects
        .service_account("kube-system", "somebody", &[])
        .await?;
    let own = world.token(1, "kiam-agent", "kiam-server").await?;
    let audience = world.token(1, "kiam-agent", "somebody-else").await?;
    let unbound = world.sandbox.folder("unbound")?.join("token");
    let account = ("kube-system", "kiam-agent");
    let token = objects.token(account, Some("kiam-server"), None).await?;
    std::fs::write(&unbound, token)?;
    let other = world.sandbox.folder("other")?.join("token");
    let account = ("kube-system", "somebody");
    let token = objects.token(account, Some("kiam-server"), None).await?;
    std::fs::write(&other, token)?;
    let garbage = world.sandbox.folder("garbage")?.join("token");
    std::fs::write(&garbage, "not.a.token")?;
    for (token, node, reason) in [
        (&own, "node-1", "comes from node-2"),
        (&audience, "node-2", "does not accept the agent's token"),
        (&unbound, "node-2", "not bound to a pod"),
        (&other, "node-2", "kube-system:somebody"),
        (&garbage, "node-2", "does not accept the agent's token"),
    ] {
        let mark = world.server()?.program().mark();
        let agent = world.agent(1, token, &[&format!("--node-name={node}")])?;
        logs(
            world.server()?.program(),
            mark,
            &["refused a node stream", reason],
        )?;
        // The agent says the same to whoever looks there.
        logs(agent.program(), 0, &[reason])?;
        agent.stop()?;
    }
    Ok(String::new())
}

async fn agents(world: &mut World) -> Result<String> {
    for node in [0, 1] {
        let token = world.token(node, "kiam-agent", "kiam-server").await?;
        let mut agent = world.agent(node, &token, &[])?;
        agent.ready()?;
        world.agents.push(agent);
    }
    Ok(String::new())
}

fn template<'a>(
    namespace: &'a str,
    name: &'a str,
    annotations: &'a [(&'a str, &'a str)],
) -> PodTemplate<'a> {
    PodTemplate {
        namespace,
        name,
        annotations,
        ..PodTemplate::default()
    }
}

async fn identities(world: &mut World) -> Result<String> {
    let objects = world.objects()?;
    objects
        .namespace("blue", &[(PERMITTED, ".*:role/blue-.*")])
        .await?;
    objects
        .namespace("green", &[(PERMITTED, ".*:role/green-.*")])
        .await?;
    objects
        .service_account("green", "jobs", &[(ROLE, "green-writer")])
        .await?;
    let by_account = PodTemplate {
        service_account: "jobs",
        ..template("green", "jobs", &[])
    };
    let reader = [(ROLE, "blue-reader")];
    let full = [(ROLE, "arn:aws:iam::123456789012:role/blue-admin")];
    for (node, template, role) in [
        (0, template("blue", "web", &reader), "blue-reader"),
        (1, by_account, "green-writer"),
        (1, template("blue", "admin", &full), "blue-admin"),
    ] {
        let pod = world.kubelet(node).run(&template).await?;
        until(pod.place(), LISTING, |answer| answer.body == role).await?;
        let identity = world.identity(pod.place())?;
        ensure!(
            identity.contains(&format!(":assumed-role/{role}/")),
            "{identity}"
        );
        let other = ask(pod.place(), &format!("{LISTING}somebody-else-s"))?;
        ensure!(other.status == 403, "{other:?}");
        world.pods.push(pod);
    }
    Ok(": 3 pods on 2 nodes".to_owned())
}

async fn forbidden(world: &mut World) -> Result<String> {
    world.objects()?.namespace("grey", &[]).await?;
    let pod = world
        .kubelet(0)
        .run(&template("grey", "curious", &[(ROLE, "blue-reader")]))
        .await?;
    let refused = |answer: &crate::probe::Answer| {
        answer.status == 403 && answer.body.contains(PERMITTED) && answer.body.contains("grey")
    };
    until(pod.place(), LISTING, refused).await?;
    ensure!(world.identity(pod.place()).is_err(), "it has an identity");
    world.kubelet(0).stop(pod).await?;
    Ok(String::new())
}

async fn no_address(world: &mut World) -> Result<String> {
    let annotations = [(ROLE, "blue-early")];
    let objects = world.objects()?;
    let object = objects
        .pod(&template("blue", "early", &annotations))
        .await?;
    let began = tokio::time::Instant::now();
    objects
        .bind("blue", "early", world.kubelet(0).node().name())
        .await?;
    let pod = world.kubelet(0).start(&object).await?;
    let path = format!("{LISTING}blue-early");
    until(pod.place(), &path, |answer| answer.status == 200).await?;
    let took = began.elapsed();
    let now = objects.api::<Pod>("blue").get("early").await?;
    let address = now.status.and_then(|status| status.pod_ip);
    ensure!(address.is_none(), "the API knows {address:?}");
    world.kubelet(0).report(&pod).await?;
    world.pods.push(pod);
    Ok(format!(
        ": {took:.0?} after it was bound, its namespace made meanwhile"
    ))
}

async fn changes(world: &mut World) -> Result<String> {
    let objects = world.objects()?;
    let place = world.pods[0].place();
    let pods = objects.api::<Pod>("blue");
    objects
        .annotate(&pods, "web", ROLE, Some("blue-writer"))
        .await?;
    let role = until(place, LISTING, |answer| answer.body == "blue-writer").await?;
    let before = ask(place, &format!("{LISTING}blue-reader"))?;
    ensure!(before.status == 403, "{before:?}");

    let namespaces = Api::<Namespace>::all(objects.client().clone());
    objects
        .annotate(&namespaces, "blue", PERMITTED, Some("none"))
        .await?;
    let path = format!("{LISTING}blue-writer");
    let withdrawn = until(place, &path, |answer| answer.status == 403).await?;
    objects
        .annotate(&namespaces, "blue", PERMITTED, Some(".*:role/blue-.*"))
        .await?;
    until(place, &path, |answer| answer.status == 200).await?;
    let other = world.identity(world.pods[1].place())?;
    ensure!(other.contains("green-writer"), "{other}");
    Ok(format!(
        ": role {role:.0?}, permission {withdrawn:.0?}, a probe's start included"
    ))
}

async fn deleted(world: &mut World) -> Result<String> {
    let Some(pod) = world.pods.pop() else {
        anyhow::bail!("there is no pod")
    };
    let objects = world.objects()?;
    objects.delete_pod(pod.namespace(), pod.name()).await?;
    // Its container still runs, as one whose kubelet is slow.
    let path = format!("{LISTING}blue-early");
    let took = until(pod.place(), &path, |answer| answer.status != 200).await?;
    Ok(format!(": {took:.0?}"))
}

async fn restart(world: &mut World) -> Result<String> {
    world.stop_server()?;
    for (pod, role) in [(0, "blue-writer"), (1, "green-writer"), (2, "blue-admin")] {
        let answer = ask(world.pods[pod].place(), &format!("{LISTING}{role}"))?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    let marks: Vec<_> = world
        .agents
        .iter()
        .map(|agent| agent.program().mark())
        .collect();
    world.start_server()?;
    for (agent, mark) in world.agents.iter().zip(marks) {
        logs(agent.program(), mark, &["the node's pods are known"])?;
    }
    // What has changed since is known again.
    let annotations = [(ROLE, "blue-late")];
    let pod = world
        .kubelet(1)
        .run(&template("blue", "late", &annotations))
        .await?;
    until(pod.place(), LISTING, |answer| answer.body == "blue-late").await?;
    let identity = world.identity(pod.place())?;
    ensure!(identity.contains(":assumed-role/blue-late/"), "{identity}");
    world.pods.push(pod);
    Ok(String::new())
}
