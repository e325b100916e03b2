//! What must be so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, ServiceAccount};
use kube::api::{Api, ListParams};

use super::world::{AGENT_ACCOUNT, AUDIENCE, World, eventually};
use crate::cluster::PodTemplate;
use crate::probe::{Answer, METADATA_SERVICE, Prober};
use crate::sandbox::Place;

type Check = fn(&mut World) -> LocalBoxFuture<'_, Result<()>>;

const ROLE: &str = "iam.amazonaws.com/role";
const PERMITTED: &str = "iam.amazonaws.com/permitted";
const LOG_LIMIT: Duration = Duration::from_secs(15);

/// In this order; later ones find what earlier ones made.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("pods are their own roles to the AWS CLI", |w| {
        own_roles(w).boxed_local()
    }),
    ("a role comes from the service account too", |w| {
        account_role(w).boxed_local()
    }),
    ("a role that is not permitted is refused", |w| {
        forbidden(w).boxed_local()
    }),
    ("a pod is served before the API knows its address", |w| {
        never_late(w).boxed_local()
    }),
    ("changes in the API are followed", |w| {
        changes(w).boxed_local()
    }),
    ("a token of another node is refused", |w| {
        other_node(w).boxed_local()
    }),
    ("a token of another account or audience is refused", |w| {
        other_token(w).boxed_local()
    }),
    ("server and agent have no more rights than they need", |w| {
        rights(w).boxed_local()
    }),
    ("nothing reached the nodes' own metadata services", |w| {
        no_leak(w).boxed_local()
    }),
];

async fn own_roles(world: &mut World) -> Result<()> {
    world
        .objects
        .namespace(
            "orders",
            &[(PERMITTED, "arn:aws:iam::123456789012:role/orders-.*")],
        )
        .await?;
    world
        .objects
        .namespace("billing", &[(PERMITTED, ".*")])
        .await?;
    for (namespace, name, role) in [
        ("orders", "api", "orders-db"),
        ("billing", "worker", "billing-reports"),
    ] {
        let annotations = [(ROLE, role)];
        let template = PodTemplate {
            namespace,
            name,
            annotations: &annotations,
            ..Default::default()
        };
        let place = world.pod(&template).await?;
        // An SDK waits for as long as the agent does.
        is(world, &place, role)?;
    }
    Ok(())
}

async fn account_role(world: &mut World) -> Result<()> {
    world
        .objects
        .service_account("billing", "exporter", &[(ROLE, "billing-exports")])
        .await?;
    let template = PodTemplate {
        namespace: "billing",
        name: "exporter",
        service_account: "exporter",
        ..Default::default()
    };
    let place = world.pod(&template).await?;
    is(world, &place, "billing-exports")
}

async fn forbidden(world: &mut World) -> Result<()> {
    let annotations = [(ROLE, "billing-reports")];
    let template = PodTemplate {
        namespace: "orders",
        name: "intruder",
        annotations: &annotations,
        ..Default::default()
    };
    let place = world.pod(&template).await?;
    eventually(|| answers(&place, "", 403, &["orders/intruder", PERMITTED])).await?;
    answers(&place, "billing-reports", 403, &[PERMITTED])?;
    let ended = world.caller_identity(&place)?;
    ensure!(
        !ended.status.success(),
        "the AWS CLI is somebody: {}",
        ended.stdout
    );
    // And another's role is refused to who has one.
    let place = world.pods[0].place();
    answers(place, "billing-reports", 403, &["orders-db", ROLE])
}

async fn never_late(world: &mut World) -> Result<()> {
    let annotations = [(ROLE, "orders-early")];
    let template = PodTemplate {
        namespace: "orders",
        name: "early",
        annotations: &annotations,
        ..Default::default()
    };
    let object = world.objects.pod(&template).await?;
    let kubelet = world.kubelets[0].clone();
    world
        .objects
        .bind("orders", "early", kubelet.node().name())
        .await?;
    let running = kubelet.start(&object).await?;
    is(world, running.place(), "orders-early")?;
    kubelet.report(&running).await?;
    is(world, running.place(), "orders-early")?;
    kubelet.stop(running).await
}

async fn changes(world: &mut World) -> Result<()> {
    let objects = world.objects.clone();
    let place = world.pods[0].place().clone();
    let pods = objects.api::<Pod>("orders");
    objects
        .annotate(&pods, "api", ROLE, Some("orders-admin"))
        .await?;
    eventually(|| answers(&place, "", 200, &["orders-admin"])).await?;
    eventually(|| answers(&place, "orders-admin", 200, &["SecretAccessKey"])).await?;
    answers(&place, "orders-db", 403, &["orders-admin"])?;

    let namespaces = Api::<Namespace>::all(objects.client().clone());
    objects
        .annotate(&namespaces, "orders", PERMITTED, None)
        .await?;
    eventually(|| answers(&place, "orders-admin", 403, &[PERMITTED, "orders"])).await?;
    objects
        .annotate(&namespaces, "orders", PERMITTED, Some(".*"))
        .await?;
    eventually(|| answers(&place, "orders-admin", 200, &["SecretAccessKey"])).await?;

    objects.annotate(&pods, "api", ROLE, None).await?;
    eventually(|| answers(&place, "", 404, &[ROLE])).await?;
    objects
        .annotate(&pods, "api", ROLE, Some("orders-db"))
        .await?;
    eventually(|| answers(&place, "orders-db", 200, &["SecretAccessKey"])).await?;
    is(world, &place, "orders-db")
}

async fn other_node(world: &mut World) -> Result<()> {
    let kubelet = world.kubelets[1].clone();
    let (pod, own_token) = world.agent_pod(&kubelet).await?;
    let annotations = [(ROLE, "billing-reports")];
    let template = PodTemplate {
        namespace: "billing",
        name: "elsewhere",
        annotations: &annotations,
        ..Default::default()
    };
    let elsewhere = kubelet.run(&template).await?;

    // The agent of the second node, with the token of the first one's.
    let agent = &world.agent_pod;
    let folder = world.sandbox.folder("stolen")?;
    let stolen = world.kubelets[0]
        .project_token(agent, AGENT_ACCOUNT, AUDIENCE, &folder)
        .await?;
    let mark = world.server.program().mark();
    let agent = world.start_agent(&kubelet, &pod, &stolen)?;
    logged(world, mark, &["refused", "node-2", "node-1"])?;
    answers(elsewhere.place(), "billing-reports", 503, &["kiam-server"])?;
    let ended = agent.stop()?;
    ensure!(
        !ended.stderr.contains("SecretAccessKey"),
        "{}",
        ended.stderr
    );

    let mut agent = world.start_agent(&kubelet, &pod, &own_token)?;
    agent.ready()?;
    is(world, elsewhere.place(), "billing-reports")?;
    agent.stop()?;
    kubelet.stop(elsewhere).await?;
    kubelet.stop(pod).await
}

async fn other_token(world: &mut World) -> Result<()> {
    let kubelet = world.kubelets[1].clone();
    let (pod, _) = world.agent_pod(&kubelet).await?;
    let bound = Some((pod.name(), pod.uid()));
    let objects = &world.objects;
    let agent = ("kube-system", AGENT_ACCOUNT);
    // A pod of the node, though not the agent's; with a token for the right audience.
    let template = PodTemplate {
        namespace: "billing",
        name: "curious",
        ..Default::default()
    };
    let curious = kubelet.run(&template).await?;
    let curious_bound = Some((curious.name(), curious.uid()));
    let tokens = [
        (
            "audience",
            objects.token(agent, Some("vault"), bound).await?,
        ),
        ("api", objects.token(agent, None, bound).await?),
        (
            "account",
            objects
                .token(("billing", "default"), Some(AUDIENCE), curious_bound)
                .await?,
        ),
        ("unbound", objects.token(agent, Some(AUDIENCE), None).await?),
        ("garbage", "not.a.token".to_owned()),
    ];
    for (what, token) in tokens {
        let path = world.sandbox.folder("wrong")?.join(what);
        std::fs::write(&path, &token)?;
        refused(world, &kubelet, &pod, &path, &token).context(what)?;
    }
    kubelet.stop(curious).await?;
    kubelet.stop(pod).await
}

/// That the server refuses an agent on the second node that shows this token.
fn refused(
    world: &World,
    kubelet: &crate::cluster::Kubelet,
    pod: &crate::cluster::Running,
    path: &Path,
    token: &str,
) -> Result<()> {
    let mark = world.server.program().mark();
    let agent = world.start_agent(kubelet, pod, path)?;
    logged(world, mark, &["refused", "node-2"])?;
    ensure!(
        agent.operator("/readyz")?.status != 200,
        "the agent is ready"
    );
    let ended = agent.stop()?;
    let said = ended.stderr + &world.server.program().output();
    ensure!(!said.contains(token), "a token is in a log");
    Ok(())
}

async fn rights(world: &mut World) -> Result<()> {
    let server = world.client_of("kiam-server").await?;
    ensure!(allowed::<Pod>(&server).await? && allowed::<Namespace>(&server).await?);
    ensure!(allowed::<ServiceAccount>(&server).await?);
    ensure!(
        !allowed::<Secret>(&server).await?,
        "the server reads secrets"
    );
    ensure!(!allowed::<Node>(&server).await?, "the server reads nodes");
    let agent = world.client_of(AGENT_ACCOUNT).await?;
    for allowed in [
        allowed::<Pod>(&agent).await?,
        allowed::<Namespace>(&agent).await?,
        allowed::<ServiceAccount>(&agent).await?,
        allowed::<Secret>(&agent).await?,
    ] {
        ensure!(!allowed, "the agent reads the API");
    }
    let output = world.server.program().output();
    ensure!(
        !output.contains("orbidden: User") && !output.contains("cannot list"),
        "{output}"
    );
    Ok(())
}

async fn no_leak(world: &mut World) -> Result<()> {
    for imds in &world.imds {
        let traffic = imds.traffic();
        let (connections, bytes) = (traffic.connections(), traffic.bytes());
        ensure!(connections == 0, "{connections} connections, {bytes} bytes");
    }
    Ok(())
}

async fn allowed<K>(client: &kube::Client) -> Result<bool>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    match Api::<K>::all(client.clone())
        .list(&ListParams::default().limit(1))
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The AWS CLI in a place is this role.
fn is(world: &World, place: &Place, role: &str) -> Result<()> {
    let ended = world.caller_identity(place)?;
    ensure!(
        ended.status.success(),
        "the AWS CLI: {}",
        ended.stderr.trim()
    );
    let own = format!("arn:aws:sts::123456789012:assumed-role/{role}/");
    ensure!(
        ended.stdout.starts_with(&own),
        "the AWS CLI is {}",
        ended.stdout.trim()
    );
    Ok(())
}

/// The metadata service answers so in a place.
fn answers(place: &Place, role: &str, expected: u16, parts: &[&str]) -> Result<()> {
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/{role}");
    let Answer { status, body, .. } = Prober::this_program().get(place, &url)?.answer()?;
    ensure!(status == expected, "{status} and not {expected}: {body}");
    for part in parts {
        ensure!(body.contains(part), "no {part:?} in {body:?}");
    }
    Ok(())
}

fn logged(world: &World, mark: usize, parts: &[&str]) -> Result<()> {
    let all = |line: &str| parts.iter().all(|part| line.contains(part)).then_some(());
    world
        .server
        .program()
        .wait_for_after(mark, &parts.join(" … "), LOG_LIMIT, all)
}
