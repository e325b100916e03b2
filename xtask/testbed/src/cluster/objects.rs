//! Objects in the API, made as users, controllers and the scheduler make them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    Binding, Container, Namespace, ObjectReference, Pod, PodSpec, ServiceAccount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective,
};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use serde_json::json;

const MANAGER: &str = "kiam-xtask";
const TOKEN_SECONDS: i64 = 3600;

/// The API, as an administrator.
#[derive(Clone)]
pub struct Objects(kube::Client);

/// A pod to be made.
#[derive(Debug, Clone, Default)]
pub struct PodTemplate<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its service account; `default` if empty.
    pub service_account: &'a str,
    /// Its annotations.
    pub annotations: &'a [(&'a str, &'a str)],
    /// True if the pod is in the network namespace of its node.
    pub host_network: bool,
}

/// One document of a file of manifests.
struct Manifest {
    name: String,
    kind: GroupVersionKind,
    object: DynamicObject,
}

impl Manifest {
    fn all(manifests: &str) -> Result<Vec<Self>> {
        let documents: Vec<DynamicObject> =
            serde_saphyr::from_multiple(manifests).context("cannot read the manifests")?;
        documents.into_iter().map(Self::new).collect()
    }

    fn new(object: DynamicObject) -> Result<Self> {
        let types = object.types.clone().context("a manifest has no kind")?;
        let name = object.metadata.name.clone();
        let TypeMeta { api_version, kind } = types;
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        Ok(Self {
            name: name.context("a manifest has no name")?,
            kind: GroupVersionKind::gvk(group, version, &kind),
            object,
        })
    }

    /// Returns whether its kind is a custom one: groups of Kubernetes are short names or end in k8s.io.
    fn is_custom(&self) -> bool {
        self.kind.group.contains('.') && !self.kind.group.ends_with("k8s.io")
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

impl Objects {
    /// With a client of an administrator.
    pub const fn new(client: kube::Client) -> Self {
        Self(client)
    }

    /// The client.
    pub const fn client(&self) -> &kube::Client {
        &self.0
    }

    /// Objects of a kind in a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.0.clone(), namespace)
    }

    /// Makes a namespace, with the service account `default` that a controller would make.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn namespace(&self, name: &str, annotations: &[(&str, &str)]) -> Result<()> {
        let metadata = metadata(name, annotations);
        let namespace = Namespace {
            metadata,
            ..Namespace::default()
        };
        let api = Api::<Namespace>::all(self.0.clone());
        api.create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("cannot make the namespace {name}"))?;
        self.service_account(name, "default", &[]).await
    }

    /// Makes a service account.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> Result<()> {
        let metadata = metadata(name, annotations);
        let account = ServiceAccount {
            metadata,
            ..ServiceAccount::default()
        };
        self.api::<ServiceAccount>(namespace)
            .create(&PostParams::default(), &account)
            .await
            .with_context(|| format!("cannot make the service account {namespace}/{name}"))?;
        Ok(())
    }

    /// Makes a pod, which is on no node yet.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn pod(&self, template: &PodTemplate<'_>) -> Result<Pod> {
        let PodTemplate {
            namespace,
            name,
            service_account,
            annotations,
            host_network,
        } = template;
        let account = Some(*service_account).filter(|name| !name.is_empty());
        let pod = Pod {
            metadata: metadata(name, annotations),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "main".to_owned(),
                    image: Some("none".to_owned()),
                    ..Container::default()
                }],
                host_network: Some(*host_network),
                service_account_name: account.map(str::to_owned),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        self.api(namespace)
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("cannot make the pod {namespace}/{name}"))
    }

    /// Binds a pod to a node, as the scheduler does.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn bind(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let binding = Binding {
            metadata: metadata(name, &[]),
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api = self.api::<Pod>(namespace);
        let binding = serde_json::to_value(binding)?;
        let _status: serde_json::Value = api
            .create_subresource("binding", name, &PostParams::default(), &binding)
            .await
            .with_context(|| format!("cannot bind {namespace}/{name} to {node}"))?;
        Ok(())
    }

    /// Sets an annotation, or removes it with `None`.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn annotate<K>(
        &self,
        api: &Api<K>,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()>
    where
        K: Clone + fmt::Debug + serde::de::DeserializeOwned,
    {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("cannot annotate {name}"))?;
        Ok(())
    }

    /// Deletes a pod at once, as a kubelet does when its containers have ended.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        self.api::<Pod>(namespace)
            .delete(name, &now)
            .await
            .with_context(|| format!("cannot delete the pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Applies manifests: YAML, any number of documents.
    ///
    /// # Errors
    /// When they are malformed or the API refuses.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        for manifest in Manifest::all(manifests)? {
            self.patch(&manifest, &PatchParams::apply(MANAGER)).await?;
        }
        Ok(())
    }

    /// Deletes what manifests made.
    ///
    /// # Errors
    /// When they are malformed or the API refuses.
    pub async fn delete(&self, manifests: &str) -> Result<()> {
        for Manifest { name, kind, object } in Manifest::all(manifests)? {
            let api = self.dynamic(&kind, object.metadata.namespace.as_deref());
            api.delete(&name, &DeleteParams::default())
                .await
                .with_context(|| format!("cannot delete {} {name}", kind.kind))?;
        }
        Ok(())
    }

    /// Lets the API check manifests as if they were applied, unknown fields too, and nothing be
    /// stored. Returns how many were checked, and the kinds that this API does not know.
    ///
    /// # Errors
    /// When they are malformed or the API refuses.
    pub async fn try_apply(&self, manifests: &str) -> Result<(usize, BTreeSet<String>)> {
        let mut params = PatchParams::apply(MANAGER).dry_run();
        params.field_validation = Some(ValidationDirective::Strict);
        let (mut checked, mut unknown) = (0, BTreeSet::new());
        for manifest in Manifest::all(manifests)? {
            match self.patch(&manifest, &params).await {
                Ok(()) => checked += 1,
                Err(_) if manifest.is_custom() => {
                    unknown.insert(manifest.kind.kind);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((checked, unknown))
    }

    async fn patch(&self, manifest: &Manifest, params: &PatchParams) -> Result<()> {
        let Manifest { name, kind, object } = manifest;
        self.dynamic(kind, object.metadata.namespace.as_deref())
            .patch(name, params, &Patch::Apply(object))
            .await
            .with_context(|| format!("cannot apply {} {name}", kind.kind))?;
        Ok(())
    }

    fn dynamic(&self, kind: &GroupVersionKind, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(kind);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.0.clone(), namespace, &resource),
            None => Api::all_with(self.0.clone(), &resource),
        }
    }

    /// A token of a service account, for this audience (the API itself, if none is given), bound
    /// to a pod if one is given, by name and UID.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn token(
        &self,
        (namespace, account): (&str, &str),
        audience: Option<&str>,
        pod: Option<(&str, &str)>,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.into_iter().map(str::to_owned).collect(),
                expiration_seconds: Some(TOKEN_SECONDS),
                bound_object_ref: pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name.to_owned()),
                    uid: Some(uid.to_owned()),
                }),
            },
            ..TokenRequest::default()
        };
        let answer = self
            .api::<ServiceAccount>(namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("cannot get a token of {namespace}/{account}"))?;
        Ok(answer.status.context("the answer holds no token")?.token)
    }
}

fn metadata(name: &str, annotations: &[(&str, &str)]) -> ObjectMeta {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let annotations: BTreeMap<_, _> = annotations.iter().map(pair).collect();
    ObjectMeta {
        name: Some(name.to_owned()),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    }
}
