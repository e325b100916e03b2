//! The chart's admission policy against probes and lifecycle hooks that name a host, asked by a
//! real kube-apiserver about pods that it refuses and pods that it accepts.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::helm;
use testbed::cluster::{ControlPlane, Objects};

const POLICY: &[&str] = &[
    "--set=probeHostPolicy.enabled=true",
    "--show-only=templates/probe-host-policy.yaml",
];
/// Namespaces to which the policy applies, and does not apply, by default.
const TEAM: &str = "team-a";
const EXEMPT: &str = "kube-system";
/// Namespace in which Pod Security's baseline is enforced.
const BASELINE: &str = "baseline";

/// Limit for the API server to see a policy.
const SEEN_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// The metadata service, in spellings that a resolver or a name server may turn into its address;
/// other names, which may lead there when the kubelet asks; and the node's own loopback.
const HOSTS: &[&str] = &[
    "169.254.169.254",
    "169.254.169.254.",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "::ffff:169.254.169.254",
    "[::ffff:a9fe:a9fe]",
    "fd00:ec2::254",
    "fd00:ec2:0:0:0:0:0:254",
    "instance-data.ec2.internal",
    "metadata.example.com",
    "127.0.0.1",
    "localhost",
    " ",
];
/// All fields by which a kubelet sends requests to a host.
const HANDLERS: &[&str] = &[
    "/livenessProbe/httpGet",
    "/livenessProbe/tcpSocket",
    "/readinessProbe/httpGet",
    "/readinessProbe/tcpSocket",
    "/startupProbe/httpGet",
    "/startupProbe/tcpSocket",
    "/lifecycle/postStart/httpGet",
    "/lifecycle/postStart/tcpSocket",
    "/lifecycle/preStop/httpGet",
    "/lifecycle/preStop/tcpSocket",
];

/// A pod that a user creates.
struct Case {
    what: String,
    namespace: &'static str,
    pod: Value,
    accepted: bool,
}

/// A container with a handler at this path that names this host.
fn container(handler: &str, host: &str) -> Value {
    let mut value = json!({ "port": 80, "host": host });
    for name in handler.rsplit('/').filter(|name| !name.is_empty()) {
        value = json!({ name: value });
    }
    value["name"] = json!("asks");
    value["image"] = json!("none");
    value
}

fn pod(spec: &Value) -> Value {
    json!({ "metadata": { "name": "tried" }, "spec": spec })
}

fn with(containers: &[Value]) -> Value {
    pod(&json!({ "containers": containers }))
}

fn cases() -> Vec<Case> {
    let plain = json!({ "name": "main", "image": "none" });
    let http = |host: &str| container(HANDLERS[0], host);
    let case = |what: &str, pod: Value, accepted: bool| Case {
        what: what.to_owned(),
        namespace: TEAM,
        pod,
        accepted,
    };
    let mut cases = vec![
        case("no probe", with(std::slice::from_ref(&plain)), true),
        case("an empty host", with(&[http("")]), true),
        case(
            "a probe of the pod itself",
            with(&[json!({
                "name": "asks",
                "image": "none",
                "readinessProbe": { "httpGet": {
                    "port": 80,
                    "httpHeaders": [{ "name": "Host", "value": "169.254.169.254" }],
                }},
                "livenessProbe": { "exec": { "command": ["true"] } },
                "startupProbe": { "grpc": { "port": 80 } },
                "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } },
            })]),
            true,
        ),
        case(
            "the second container",
            with(&[plain.clone(), http("169.254.169.254")]),
            false,
        ),
        Case {
            namespace: EXEMPT,
            ..case("an exempt namespace", with(&[http("169.254.20.10")]), true)
        },
    ];
    for host in HOSTS {
        cases.push(case(host, with(&[http(host)]), false));
    }
    for handler in HANDLERS {
        let asks = container(handler, "169.254.169.254");
        let mut sidecar = asks.clone();
        sidecar["restartPolicy"] = json!("Always");
        let init = json!({ "containers": [plain], "initContainers": [sidecar] });
        cases.push(case(handler, with(&[asks]), false));
        cases.push(case(&format!("a sidecar's {handler}"), pod(&init), false));
    }
    let host_network =
        |host: &str| pod(&json!({ "hostNetwork": true, "containers": [http(host)] }));
    for host in ["127.0.0.1", "::1", "localhost", ""] {
        let what = format!("hostNetwork, {host:?}");
        cases.push(case(&what, host_network(host), true));
    }
    for host in ["169.254.169.254", "127.0.0.2"] {
        let what = format!("hostNetwork, {host}");
        cases.push(case(&what, host_network(host), false));
    }
    cases
}

/// Submits a pod to the API as a dry run.
async fn attempt(client: &kube::Client, namespace: &str, pod: &Value) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = serde_json::from_value(pod.clone()).map_err(kube::Error::SerdeError)?;
    api.create(&params, &pod).await
}

/// Tries all cases: each is accepted without the policy, and with it, refused or accepted as
/// expected.
#[expect(clippy::print_stdout, reason = "for the terminal")]
pub(super) async fn check(plane: &ControlPlane, objects: &Objects) -> Result<()> {
    let client = objects.client();
    objects.namespace(TEAM, &[]).await?;
    objects.service_account(EXEMPT, "default", &[]).await?;
    let cases = cases();
    for Case {
        what,
        namespace,
        pod,
        ..
    } in &cases
    {
        let tried = attempt(client, namespace, pod).await;
        tried.with_context(|| format!("without the policy, {what}"))?;
    }
    baseline(objects).await?;
    objects.apply(&helm::template(POLICY)?).await?;
    let asks = with(&[container(HANDLERS[0], HOSTS[0])]);
    until_refused(client, &asks).await?;
    let mut refused = 0;
    for case in &cases {
        let Case { what, pod, .. } = case;
        match (attempt(client, case.namespace, pod).await, case.accepted) {
            (Ok(_), true) => {}
            (Err(kube::Error::Api(status)), false) => {
                let message = &status.message;
                ensure!(
                    status.code == 403
                        && message.contains("may not name a host")
                        && message.ends_with("asks"),
                    "{what}: refused with {}: {message}",
                    status.code
                );
                refused += 1;
            }
            (Ok(_), false) => bail!("{what}: the policy accepts it"),
            (Err(error), _) => return Err(error).with_context(|| what.clone()),
        }
    }
    mirror(plane, &asks).await?;
    println!(
        "chart: probeHostPolicy refuses {refused} pods, and accepts {} and a static pod's mirror",
        cases.len() - refused
    );
    Ok(())
}

/// A policy holds once the API server has seen it.
async fn until_refused(client: &kube::Client, pod: &Value) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SEEN_LIMIT;
    while attempt(client, TEAM, pod).await.is_ok() {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the API does not follow the policy within {SEEN_LIMIT:?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Pod Security's own rule, which the documents name: the same pod, with no policy of the chart's.
async fn baseline(objects: &Objects) -> Result<()> {
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": BASELINE,
            "labels": { "pod-security.kubernetes.io/enforce": "baseline" },
        },
    });
    objects.apply(&namespace.to_string()).await?;
    objects.service_account(BASELINE, "default", &[]).await?;
    let asks = with(&[container(HANDLERS[0], HOSTS[0])]);
    match attempt(objects.client(), BASELINE, &asks).await {
        Ok(_) => bail!("Pod Security's baseline accepts a probe of {}", HOSTS[0]),
        Err(error) => ensure!(
            error.to_string().contains("probe or lifecycle host"),
            "{error}"
        ),
    }
    Ok(())
}

/// A static pod runs regardless of the API: refusing its mirror would only hide it.
async fn mirror(plane: &ControlPlane, pod: &Value) -> Result<()> {
    const NODE: &str = "node-1";
    let mut pod = pod.clone();
    let admin = plane.client().await?;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(NODE.to_owned()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    let nodes: Api<Node> = Api::all(admin.clone());
    let node = nodes.create(&PostParams::default(), &node).await?;
    pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "1" });
    // NodeRestriction takes no other owner of a mirror than the kubelet's own node.
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1",
        "kind": "Node",
        "name": NODE,
        "uid": node.metadata.uid,
        "controller": true,
    }]);
    pod["spec"]["nodeName"] = json!(NODE);
    let kubelet = plane.client_of_kubelet(NODE).await?;
    let tried = attempt(&kubelet, TEAM, &pod).await;
    tried.context("a static pod's mirror")?;
    // Other users cannot claim this.
    let tried = attempt(&admin, TEAM, &pod).await;
    ensure!(tried.is_err(), "a user's mirror of no static pod");
    Ok(())
}
