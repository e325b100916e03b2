//! The kubelet's part: nodes and pods of the API become nodes and pods of the sandbox.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod as PodObject};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Objects, PodTemplate};
use crate::sandbox::{Node, Place, Pod, PodOptions};

/// A node's kubelet.
#[derive(Debug, Clone)]
pub struct Kubelet {
    node: Node,
    objects: Objects,
}

/// A pod that runs: the API's, and the sandbox's with its UID.
#[derive(Debug)]
pub struct Running {
    namespace: String,
    name: String,
    pod: Pod,
}

impl Running {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        self.pod.uid()
    }

    /// Its namespaces and cgroups.
    pub const fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The place for its programs.
    pub const fn place(&self) -> &Place {
        self.pod.place()
    }
}

impl Kubelet {
    /// Registers a node with the API.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn register(objects: Objects, node: Node) -> Result<Self> {
        let name = node.name();
        let api = Api::<NodeObject>::all(objects.client().clone());
        let object = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("cannot register the node {name}"))?;
        let status = json!({ "status": {
            "addresses": [
                { "type": "InternalIP", "address": node.ip() },
                { "type": "Hostname", "address": name },
            ],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
            "capacity": { "pods": "250" },
        }});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .with_context(|| format!("cannot report the node {name}"))?;
        Ok(Self { node, objects })
    }

    /// Its node.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// Makes a pod, binds it here, starts it and reports that.
    ///
    /// # Errors
    /// When the API refuses or a tool fails.
    pub async fn run(&self, template: &PodTemplate<'_>) -> Result<Running> {
        let object = self.objects.pod(template).await?;
        self.objects
            .bind(template.namespace, template.name, self.node.name())
            .await?;
        let running = self.start(&object).await?;
        self.report(&running).await?;
        Ok(running)
    }

    /// Makes the namespaces and cgroups of a pod that is bound here. The API does not know its
    /// addresses until [`Self::report`].
    ///
    /// # Errors
    /// When a tool fails.
    pub async fn start(&self, object: &PodObject) -> Result<Running> {
        self.start_at(object, None).await
    }

    /// Starts a pod like [`Self::start`], with the address of an earlier pod.
    ///
    /// # Errors
    /// When a tool fails.
    pub async fn start_at(&self, object: &PodObject, ip: Option<Ipv4Addr>) -> Result<Running> {
        let metadata = &object.metadata;
        let host_network = object.spec.as_ref().and_then(|spec| spec.host_network);
        let options = PodOptions {
            uid: metadata.uid.clone(),
            host_network: host_network.unwrap_or_default(),
            ip,
            ..PodOptions::default()
        };
        let node = self.node.clone();
        let pod = tokio::task::spawn_blocking(move || node.pod(options));
        Ok(Running {
            namespace: metadata
                .namespace
                .clone()
                .context("a pod has a namespace")?,
            name: metadata.name.clone().context("a pod has a name")?,
            pod: pod.await??,
        })
    }

    /// Reports that a pod runs, and its addresses.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn report(&self, running: &Running) -> Result<()> {
        let Running {
            namespace,
            name,
            pod,
        } = running;
        let ips = match (pod.ip(), pod.ipv6()) {
            (Some(v4), Some(v6)) => vec![v4.into(), v6.into()],
            _ => vec![self.node.ip()],
        };
        let status = json!({ "status": {
            "phase": "Running",
            "hostIP": self.node.ip(),
            "hostIPs": [{ "ip": self.node.ip() }],
            "podIP": ips[0],
            "podIPs": ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        self.objects
            .api::<PodObject>(namespace)
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .with_context(|| format!("cannot report the pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Ends a pod, and then its object.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn stop(&self, running: Running) -> Result<()> {
        let (namespace, name) = self.empty(running).await?;
        self.objects.delete_pod(&namespace, &name).await
    }

    /// Ends a pod's processes and gives its address back. Its object stays: its namespace and name.
    ///
    /// # Errors
    /// When the thread that does it panics.
    pub async fn empty(&self, running: Running) -> Result<(String, String)> {
        let Running {
            namespace,
            name,
            pod,
        } = running;
        tokio::task::spawn_blocking(move || drop(pod)).await?;
        Ok((namespace, name))
    }

    /// Writes a pod's token into a folder, in the layout of a projected volume.
    ///
    /// # Errors
    /// When the API refuses or the folder cannot be written.
    pub async fn project_token(
        &self,
        running: &Running,
        account: &str,
        audience: &str,
        folder: &Path,
    ) -> Result<PathBuf> {
        let account = (running.namespace(), account);
        let pod = Some((running.name(), running.uid()));
        let token = self.objects.token(account, Some(audience), pod).await?;
        project(folder, "token", &token)
            .with_context(|| format!("cannot write a token into {}", folder.display()))
    }
}

/// Writes a file as the kubelet writes those of secrets and projected volumes: a symbolic link to
/// one through `..data`, which is replaced as a whole.
fn project(folder: &Path, name: &str, content: &str) -> std::io::Result<PathBuf> {
    let version = format!("..{}", crate::sandbox::random_uuid());
    std::fs::create_dir_all(folder.join(&version))?;
    std::fs::write(folder.join(&version).join(name), content)?;
    let data = folder.join("..data");
    let before = std::fs::read_link(&data).ok();
    let beside = folder.join("..data_tmp");
    symlink(&version, &beside)?;
    std::fs::rename(beside, data)?;
    if let Some(before) = before {
        std::fs::remove_dir_all(folder.join(before))?;
    }
    let file = folder.join(name);
    if !file.is_symlink() {
        symlink(Path::new("..data").join(name), &file)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projected_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = project(folder.path(), "token", "first").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(project(folder.path(), "token", "second").unwrap(), path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            3,
            "no old version stays"
        );
    }
}
