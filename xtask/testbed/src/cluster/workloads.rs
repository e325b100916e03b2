//! The work of controllers and a kubelet for objects that `helm` and `kubectl` make: service accounts,
//! the pods of DaemonSets and Deployments on one node, and what runs in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::Metadata;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::containers::{Made, Runtime};
use super::logs::{self, Logs};
use super::{Kubelet, Objects, Running};
use crate::probe;
use crate::sandbox::{Guest, Program, Sandbox};

const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(50);

/// A pod of which a program runs, or has run.
#[derive(Debug)]
struct Started {
    program: Option<Program>,
    owner: Option<String>,
    running: Running,
}

/// A cluster's controllers, and the kubelet of its only node.
#[derive(Debug)]
pub struct Workloads {
    // In the order in which they are dropped: a program before its pod.
    started: BTreeMap<String, Started>,
    runtime: Runtime,
    logs: Logs,
    objects: Objects,
    kubelet: Kubelet,
    _port: Guest,
}

impl Workloads {
    /// On a node that is registered.
    ///
    /// # Errors
    /// When its kubelet's port cannot be served.
    pub async fn new(
        sandbox: &Sandbox,
        kubelet: Kubelet,
        objects: Objects,
        runtime: Runtime,
    ) -> Result<Self> {
        let logs = Logs::default();
        let port = logs::serve(kubelet.node(), &sandbox.folder("kubelet")?, logs.clone())?;
        let endpoint = json!({ "status": {
            "daemonEndpoints": { "kubeletEndpoint": { "Port": logs::PORT } },
        }});
        Api::<NodeObject>::all(objects.client().clone())
            .patch_status(
                kubelet.node().name(),
                &PatchParams::default(),
                &Patch::Merge(endpoint),
            )
            .await
            .context("cannot report the kubelet's port")?;
        Ok(Self {
            started: BTreeMap::new(),
            runtime,
            logs,
            objects,
            kubelet,
            _port: port,
        })
    }

    /// Does what there is to do, until nothing is left of it.
    ///
    /// # Errors
    /// When the API refuses, or something does not start.
    pub async fn settle(&mut self) -> Result<()> {
        self.service_accounts().await?;
        self.owned().await?;
        self.start().await?;
        self.ready().await?;
        self.report().await
    }

    /// The last output of programs, for an error message.
    pub fn tails(&self) -> String {
        let programs = self.started.values().filter_map(|pod| pod.program.as_ref());
        let tails = programs.map(|program| format!("{}:\n{}", program.name(), program.tail()));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Each namespace has one called `default`.
    async fn service_accounts(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.objects.client().clone());
        for namespace in namespaces.list(&ListParams::default()).await? {
            let name = namespace.metadata.name.unwrap_or_default();
            let accounts = self
                .objects
                .api::<k8s_openapi::api::core::v1::ServiceAccount>(&name);
            if accounts.get_opt("default").await?.is_none() {
                self.objects.service_account(&name, "default", &[]).await?;
            }
        }
        Ok(())
    }

    async fn all<K>(&self) -> Result<Vec<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let api = Api::<K>::all(self.objects.client().clone());
        Ok(api.list(&ListParams::default()).await?.items)
    }

    /// Makes the pods of what owns pods, and ends those whose owner is gone.
    async fn owned(&mut self) -> Result<()> {
        let mut owners = Vec::new();
        for set in self.all::<DaemonSet>().await? {
            let spec = set.spec.clone().context("a DaemonSet has a spec")?;
            self.make("DaemonSet", &set, &spec.template, 1).await?;
            owners.extend(set.metadata.uid);
        }
        for deployment in self.all::<Deployment>().await? {
            let spec = deployment.spec.clone().context("a Deployment has a spec")?;
            let replicas = spec.replicas.unwrap_or(1);
            self.make("Deployment", &deployment, &spec.template, replicas)
                .await?;
            owners.extend(deployment.metadata.uid);
        }
        let gone = |pod: &Started| {
            pod.owner
                .as_ref()
                .is_some_and(|owner| !owners.contains(owner))
        };
        let uids = self.started.iter().filter(|(_, pod)| gone(pod));
        let uids: Vec<_> = uids.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            if let Some(pod) = self.started.remove(&uid) {
                drop(pod.program);
                self.kubelet.stop(pod.running).await?;
            }
        }
        Ok(())
    }

    async fn make<K>(
        &self,
        kind: &str,
        owner: &K,
        template: &PodTemplateSpec,
        count: i32,
    ) -> Result<()>
    where
        K: Metadata<Ty = ObjectMeta>,
    {
        let owner = owner.metadata();
        let (name, uid) = (
            owner.name.clone().unwrap_or_default(),
            owner.uid.clone().unwrap_or_default(),
        );
        let namespace = owner.namespace.clone().unwrap_or_default();
        let pods = self.objects.api::<Pod>(&namespace);
        for number in 0..count {
            let pod_name = format!("{name}-{number}");
            if pods.get_opt(&pod_name).await?.is_some() {
                continue;
            }
            let mut metadata = template.metadata.clone().unwrap_or_default();
            metadata.name = Some(pod_name);
            metadata.owner_references = Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: kind.to_owned(),
                name: name.clone(),
                uid: uid.clone(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
            let pod = Pod {
                metadata,
                spec: template.spec.clone(),
                status: None,
            };
            let made = pods.create(&PostParams::default(), &pod).await;
            made.with_context(|| format!("cannot make a pod of the {kind} {name}"))?;
        }
        Ok(())
    }

    /// Starts pods that are new: first those with an address of their own, which others ask for.
    async fn start(&mut self) -> Result<()> {
        let mut new: Vec<_> = self.all::<Pod>().await?;
        new.retain(|pod| {
            !self
                .started
                .contains_key(pod.metadata.uid.as_deref().unwrap_or_default())
        });
        new.sort_by_key(|pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.host_network == Some(true))
        });
        for pod in new {
            let metadata = &pod.metadata;
            let (namespace, name) = (
                metadata.namespace.clone().unwrap_or_default(),
                metadata.name.clone().unwrap_or_default(),
            );
            self.objects
                .bind(&namespace, &name, self.kubelet.node().name())
                .await?;
            let running = self.kubelet.start(&pod).await?;
            self.kubelet.report(&running).await?;
            let made = self
                .runtime
                .run(&self.objects, &self.kubelet, &running, &pod)
                .await;
            let made = made.with_context(|| format!("the pod {namespace}/{name}"))?;
            let program = match made {
                Made::Runs { program, before } => {
                    for (container, output) in before {
                        self.logs
                            .set(format!("{namespace}/{name}/{container}"), output);
                    }
                    Some(program)
                }
                Made::Ended {
                    container,
                    success,
                    output,
                } => {
                    self.logs
                        .set(format!("{namespace}/{name}/{container}"), output);
                    self.ended(&namespace, &name, &container, success).await?;
                    None
                }
            };
            let owner = metadata
                .owner_references
                .as_ref()
                .and_then(|owners| owners.first());
            let started = Started {
                program,
                owner: owner.map(|owner| owner.uid.clone()),
                running,
            };
            self.started
                .insert(metadata.uid.clone().unwrap_or_default(), started);
        }
        Ok(())
    }

    async fn ended(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        success: bool,
    ) -> Result<()> {
        let (phase, code) = if success {
            ("Succeeded", 0)
        } else {
            ("Failed", 1)
        };
        let status = json!({ "status": { "phase": phase, "containerStatuses": [{
            "name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": code, "reason": "Completed" } },
        }]}});
        let pods = self.objects.api::<Pod>(namespace);
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// Waits until each pod's readiness probe succeeds.
    async fn ready(&mut self) -> Result<()> {
        let pods = self.all::<Pod>().await?;
        for pod in pods {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let node = self.kubelet.node().ip();
            let Some(started) = self.started.get_mut(uid) else {
                continue;
            };
            let ip = started.running.pod().ip().map_or(node, Into::into);
            let Some(url) = probed(&pod, ip) else {
                continue;
            };
            let Some(program) = &mut started.program else {
                continue;
            };
            let url: http::Uri = url.parse()?;
            let netns = started.running.place().netns().clone();
            let deadline = Instant::now() + READY_LIMIT;
            loop {
                let asked =
                    netns.block_on(async || probe::fetch(&http::Method::GET, &url, &[]).await)?;
                let output = match asked {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => answer.body,
                    Err(error) => error.to_string(),
                };
                let tail = program.tail();
                ensure!(
                    program.try_status()?.is_none(),
                    "{} has ended:\n{tail}",
                    program.name()
                );
                ensure!(
                    Instant::now() < deadline,
                    "{} is not ready ({output}):\n{tail}",
                    program.name()
                );
                tokio::time::sleep(READY_PAUSE).await;
            }
            let name = format!("{}/{}", started.running.namespace(), started.running.name());
            let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
            for container in containers {
                self.logs
                    .set(format!("{name}/{}", container.name), program.output());
            }
        }
        Ok(())
    }

    /// All that are wanted are there: what `kubectl rollout status` waits for.
    async fn report(&self) -> Result<()> {
        for set in self.all::<DaemonSet>().await? {
            let status = json!({
                "observedGeneration": set.metadata.generation, "currentNumberScheduled": 1,
                "desiredNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1,
                "numberAvailable": 1, "updatedNumberScheduled": 1,
            });
            self.patch::<DaemonSet>(&set.metadata, status).await?;
        }
        for deployment in self.all::<Deployment>().await? {
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            let status = json!({
                "observedGeneration": deployment.metadata.generation, "replicas": replicas,
                "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
            });
            self.patch::<Deployment>(&deployment.metadata, status)
                .await?;
        }
        Ok(())
    }

    async fn patch<K>(&self, metadata: &ObjectMeta, status: Value) -> Result<()>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({ "status": status }));
        let api = self.objects.api::<K>(namespace);
        api.patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

/// Readiness probe of a pod.
fn probed(pod: &Pod, ip: std::net::IpAddr) -> Option<String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let container = pod.spec.as_ref()?.containers.first()?;
    let get = container.readiness_probe.as_ref()?.http_get.as_ref()?;
    let port = match &get.port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => {
            let ports = container.ports.as_ref()?;
            let is_it = |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name));
            is_it(name)?.container_port
        }
    };
    Some(format!(
        "http://{ip}:{port}{}",
        get.path.as_deref().unwrap_or("/")
    ))
}
