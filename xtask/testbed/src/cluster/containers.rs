//! A pod's manifest as the container that a kubelet would have made of it: arguments, environment,
//! user, capabilities and volumes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, Pod, PodSpec, Secret, Service, Volume, VolumeProjection,
};
use kube::api::ListParams;
use toolchain::AWS;

use super::{Kubelet, Objects, Running};
use crate::container::{Containers, Mount, Spec, cgroup_inside, give};
use crate::sandbox::{Program, Sandbox, run};

/// User of an image's programs where the manifest names none.
const IMAGE_USER: i64 = 65532;
const LIMIT: Duration = Duration::from_secs(60);

/// Settings of a pod beside its manifest.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The images that pods name: kiam's has this name, the AWS CLI's is this machine's.
    pub image: (String, Containers),
    /// AWS environment of a server: its keys, and the URL of STS.
    pub server: BTreeMap<String, String>,
    /// Environment of the AWS CLI in its pod.
    pub client: BTreeMap<String, String>,
    /// The Kubernetes API.
    pub api: SocketAddr,
    /// The authority of its certificate.
    pub authority: PathBuf,
    /// Folder of volumes.
    pub sandbox: Sandbox,
}

/// State of a pod.
#[derive(Debug)]
pub enum Made {
    /// It runs.
    Runs {
        /// Its container's program.
        program: Program,
        /// Output of its init containers, by name.
        before: Vec<(String, String)>,
    },
    /// It has run to its end.
    Ended {
        /// Its container's name.
        container: String,
        /// True if the pod succeeded.
        success: bool,
        /// Its output.
        output: String,
    },
}

impl Runtime {
    /// Runs a pod's container.
    pub(super) async fn run(
        &self,
        objects: &Objects,
        kubelet: &Kubelet,
        running: &Running,
        pod: &Pod,
    ) -> Result<Made> {
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let [container] = spec.containers.as_slice() else {
            bail!("pods have one container here");
        };
        if self.is_ours(container) {
            let bound = Bound {
                runtime: self,
                objects,
                kubelet,
                running,
                pod: spec,
            };
            let mut before = Vec::new();
            for container in spec.init_containers.iter().flatten() {
                let command = bound.command(container).await?;
                let name = container.name.clone();
                let ended =
                    tokio::task::spawn_blocking(move || run(&name, command, LIMIT)).await??;
                let output = ended.stdout + &ended.stderr;
                ensure!(ended.status.success(), "{}: {output}", container.name);
                before.push((container.name.clone(), output));
            }
            let command = bound.command(container).await?;
            let name = format!("{}/{}", running.namespace(), running.name());
            let program = Program::start(&name, command)?;
            return Ok(Made::Runs { program, before });
        }
        let image = container.image.clone().unwrap_or_default();
        if !image.contains("aws-cli") {
            bail!("there is no image {image} here: only kiam's, and the AWS CLI's");
        }
        let mut command = running.place().command(AWS.program("aws"));
        command
            .env_clear()
            .env("HOME", self.sandbox.folder("home")?)
            .envs(&self.client)
            .args(container.args.iter().flatten());
        let ended =
            tokio::task::spawn_blocking(move || run("the AWS CLI", command, LIMIT)).await??;
        Ok(Made::Ended {
            container: container.name.clone(),
            success: ended.status.success(),
            output: ended.stdout + &ended.stderr,
        })
    }

    fn is_ours(&self, container: &Container) -> bool {
        let image = container.image.as_deref().unwrap_or_default();
        image.rsplit_once(':').map_or(image, |(name, _)| name) == self.image.0
    }
}

/// A pod of kiam's image on its node.
#[derive(Clone, Copy)]
struct Bound<'a> {
    runtime: &'a Runtime,
    objects: &'a Objects,
    kubelet: &'a Kubelet,
    running: &'a Running,
    pod: &'a PodSpec,
}

impl Bound<'_> {
    async fn command(&self, container: &Container) -> Result<Command> {
        let spec = self.spec(container).await?;
        let (_, containers) = &self.runtime.image;
        containers.command(self.running.place(), &spec)
    }

    async fn spec(&self, container: &Container) -> Result<Spec> {
        let Self {
            runtime,
            objects,
            kubelet,
            running,
            pod,
        } = *self;
        let context = container.security_context.as_ref();
        let of_pod = pod
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        let user = context.and_then(|context| context.run_as_user).or(of_pod);
        let user = u32::try_from(user.unwrap_or(IMAGE_USER))?;
        let added = context.and_then(|context| context.capabilities.as_ref()?.add.as_ref());
        let lists = [&container.command, &container.args];
        let mut spec = Spec {
            args: lists.into_iter().flatten().flatten().cloned().collect(),
            user,
            capabilities: added
                .into_iter()
                .flatten()
                .map(|name| format!("CAP_{name}"))
                .collect(),
            ..Spec::default()
        };
        for variable in container.env.iter().flatten() {
            let value = value(variable, kubelet, running)?;
            let reference = format!("$({})", variable.name);
            for argument in &mut spec.args {
                *argument = argument.replace(&reference, &value);
            }
            spec.env.push(format!("{}={value}", variable.name));
        }
        // As every image of kiam's has it, and every pod.
        spec.env.push("PATH=/usr/sbin:/usr/bin".to_owned());
        spec.env
            .push(format!("KUBERNETES_SERVICE_HOST={}", runtime.api.ip()));
        spec.env
            .push(format!("KUBERNETES_SERVICE_PORT={}", runtime.api.port()));
        if pod.automount_service_account_token == Some(true) {
            spec.env.extend(
                runtime
                    .server
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            );
        }
        let folder = runtime.sandbox.folder(&format!("pod-{}", running.uid()))?;
        let hosts = folder.join("hosts");
        std::fs::write(&hosts, runtime.hosts(objects).await?)?;
        spec.mounts.push(Mount::Bind {
            source: hosts,
            destination: "/etc/hosts".into(),
        });
        for mount in container.volume_mounts.iter().flatten() {
            let volumes = pod.volumes.iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume.name == mount.name);
            let volume = volume.with_context(|| format!("there is no volume {}", mount.name))?;
            let destination = PathBuf::from(&mount.mount_path);
            let made = self.volume(volume, &folder, destination).await;
            spec.mounts
                .extend(made.with_context(|| format!("the volume {}", mount.name))?);
        }
        give(&folder, user)?;
        Ok(spec)
    }

    async fn volume(
        &self,
        volume: &Volume,
        folder: &Path,
        destination: PathBuf,
    ) -> Result<Vec<Mount>> {
        let Self {
            objects,
            kubelet,
            running,
            ..
        } = *self;
        let source = folder.join(&volume.name);
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            let secret = objects.api::<Secret>(running.namespace()).get(name).await?;
            std::fs::create_dir_all(&source)?;
            for (name, content) in secret.data.unwrap_or_default() {
                std::fs::write(source.join(name), content.0)?;
            }
        } else if let Some(projected) = &volume.projected {
            std::fs::create_dir_all(&source)?;
            for part in projected.sources.iter().flatten() {
                self.project(part, &source).await?;
            }
        } else if let Some(host) = &volume.host_path {
            // The node's own cgroups and BPF file system are those of the sandbox's node.
            return match host.path.as_str() {
                "/sys/fs/cgroup" => {
                    let kubepods = kubelet.node().kubepods().path();
                    let source = kubepods.parent().context("a node has a cgroup")?;
                    let source = cgroup_inside(source)?;
                    Ok(vec![Mount::Bind {
                        source,
                        destination,
                    }])
                }
                "/sys/fs/bpf" => Ok(vec![Mount::Bpf {
                    node: kubelet.node().bpffs().path().to_owned(),
                    destination,
                }]),
                "/run/netns" => namespaces(kubelet, &destination),
                other => bail!("the node has no {other} here"),
            };
        } else {
            bail!("volumes are secrets, projections and paths of the node here");
        }
        Ok(vec![Mount::Bind {
            source,
            destination,
        }])
    }

    async fn project(&self, part: &VolumeProjection, folder: &Path) -> Result<()> {
        let Self {
            objects,
            running,
            pod,
            ..
        } = *self;
        if let Some(token) = &part.service_account_token {
            let account = pod.service_account_name.as_deref().unwrap_or("default");
            let account = (running.namespace(), account);
            let of_pod = Some((running.name(), running.uid()));
            let text = objects
                .token(account, token.audience.as_deref(), of_pod)
                .await?;
            std::fs::write(folder.join(&token.path), text)?;
        }
        // kube-root-ca.crt, which a controller makes in each namespace.
        if part.config_map.is_some() {
            std::fs::copy(&self.runtime.authority, folder.join("ca.crt"))?;
        }
        if part.downward_api.is_some() {
            std::fs::write(folder.join("namespace"), running.namespace())?;
        }
        Ok(())
    }
}

impl Runtime {
    /// Addresses of each service, for the name server.
    async fn hosts(&self, objects: &Objects) -> Result<String> {
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        let all = kube::Api::<Service>::all(objects.client().clone());
        for service in all.list(&ListParams::default()).await? {
            let Some(selector) = service.spec.and_then(|spec| spec.selector) else {
                continue;
            };
            let labels: Vec<_> = selector
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let namespace = service.metadata.namespace.unwrap_or_default();
            let name = service.metadata.name.unwrap_or_default();
            let pods = objects.api::<Pod>(&namespace);
            for pod in pods
                .list(&ListParams::default().labels(&labels.join(",")))
                .await?
            {
                if let Some(ip) = pod.status.and_then(|status| status.pod_ip) {
                    hosts.push_str(&format!(
                        "{ip} {name} {name}.{namespace} {name}.{namespace}.svc\n"
                    ));
                }
            }
        }
        Ok(hosts)
    }
}

/// The network namespaces of a node and its pods, and no others of this machine's.
fn namespaces(kubelet: &Kubelet, destination: &Path) -> Result<Vec<Mount>> {
    let node = kubelet.node().place().netns();
    let pods = format!("{}-", node.name());
    let folder = node.path().parent().context("namespaces have a folder")?;
    let mut mounts = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == node.name() || name.to_string_lossy().starts_with(&pods) {
            mounts.push(Mount::Bind {
                source: entry.path(),
                destination: destination.join(name),
            });
        }
    }
    Ok(mounts)
}

fn value(variable: &EnvVar, kubelet: &Kubelet, running: &Running) -> Result<String> {
    if let Some(value) = &variable.value {
        return Ok(value.clone());
    }
    let field = variable
        .value_from
        .as_ref()
        .and_then(|from| from.field_ref.as_ref());
    match field.map(|field| field.field_path.as_str()) {
        Some("spec.nodeName") => Ok(kubelet.node().name().to_owned()),
        Some("status.hostIP") => Ok(kubelet.node().ip().to_string()),
        Some("metadata.uid") => Ok(running.uid().to_owned()),
        other => bail!("{}: {other:?} is not known here", variable.name),
    }
}
