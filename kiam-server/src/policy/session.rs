//! What a granted pod's session is made of: its name, length and tags.

use std::time::Duration;

use kiam_common::duration;
use kiam_common::role::RoleArn;

use super::{SESSION_DURATION, session_name};
use crate::cluster::object::{Annotations, Pod};
use crate::identity::{Identity, Tag};

/// The longest tag value (STS API reference, `Tag`), in characters.
const MAX_TAG_VALUE: usize = 256;
/// The longest source identity (STS API reference, `AssumeRole`, `SourceIdentity`).
const MAX_SOURCE_IDENTITY: usize = 64;
/// The shortest session that STS issues (STS API reference, `AssumeRole`, `DurationSeconds`).
const SHORTEST: Duration = Duration::from_secs(15 * 60);

/// How sessions are made, for all pods.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// Names the sessions of pods that name none.
    pub name: String,
    /// How long sessions last.
    pub duration: Duration,
    /// The longest that a pod may ask for.
    pub longest: Duration,
    /// What sessions are tagged with.
    pub tags: Vec<SessionTag>,
    /// The value of [`SessionTag::ClusterName`].
    pub cluster: String,
    /// Whether namespace and service account are the sessions' source identity.
    pub source_identity: bool,
}

/// Something about a pod that its sessions can be tagged with. Keys that EKS Pod Identity uses
/// too are the same, so that a policy can serve both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum SessionTag {
    /// kubernetes-namespace
    Namespace,
    /// kubernetes-service-account
    ServiceAccount,
    /// kubernetes-pod-name: one session, and so one STS call, for each pod
    PodName,
    /// kubernetes-pod-uid: one session, and so one STS call, for each pod
    PodUid,
    /// kubernetes-node-name: one session for each role and node
    NodeName,
    /// kubernetes-cluster-name, as given by --cluster-name
    ClusterName,
}

impl SessionTag {
    /// The tag's key.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Namespace => "kubernetes-namespace",
            Self::ServiceAccount => "kubernetes-service-account",
            Self::PodName => "kubernetes-pod-name",
            Self::PodUid => "kubernetes-pod-uid",
            Self::NodeName => "kubernetes-node-name",
            Self::ClusterName => "kubernetes-cluster-name",
        }
    }

    fn value<'a>(self, pod: &'a Pod, settings: &'a SessionSettings) -> &'a str {
        match self {
            Self::Namespace => &pod.namespace,
            Self::ServiceAccount => &pod.service_account,
            Self::PodName => &pod.name,
            Self::PodUid => &pod.uid,
            Self::NodeName => pod.node.as_deref().unwrap_or_default(),
            Self::ClusterName => &settings.cluster,
        }
    }
}

/// What distinguishes the pod's session from others. What was not chosen is not in it, so that
/// pods which differ in nothing that was chosen share one.
///
/// # Errors
/// Says what is wrong with the pod's annotations.
pub(super) fn identity(
    role: RoleArn,
    pod: &Pod,
    settings: &SessionSettings,
) -> Result<Identity, String> {
    let annotations = pod.annotations.as_deref();
    let name = annotations.and_then(|annotations| annotations.session_name.as_deref());
    let tag = |tag: &SessionTag| Tag {
        key: tag.key(),
        value: tag
            .value(pod, settings)
            .chars()
            .take(MAX_TAG_VALUE)
            .collect(),
    };
    let source_identity = settings.source_identity.then(|| {
        let (namespace, account) = (&pod.namespace, &pod.service_account);
        format!("{namespace}.{account}")
            .chars()
            .take(MAX_SOURCE_IDENTITY)
            .collect()
    });
    Ok(Identity {
        role,
        session_name: session_name(name.unwrap_or(&settings.name)),
        external_id: annotations.and_then(|annotations| annotations.external_id.clone()),
        duration: session_duration(annotations, settings)?,
        tags: settings.tags.iter().map(tag).collect(),
        source_identity,
    })
}

fn session_duration(
    annotations: Option<&Annotations>,
    settings: &SessionSettings,
) -> Result<Duration, String> {
    let Some(text) = annotations.and_then(|annotations| annotations.session_duration.as_deref())
    else {
        return Ok(settings.duration);
    };
    let refused = |why: String| Err(format!("the pod's annotation {SESSION_DURATION}: {why}"));
    match duration::parse(text) {
        Err(error) => refused(super::quotable(&error.to_string())),
        Ok(asked) if asked < SHORTEST || asked > settings.longest => refused(format!(
            "{} is not between {} and {}, which --max-session-duration allows",
            duration::format(asked),
            duration::format(SHORTEST),
            duration::format(settings.longest),
        )),
        Ok(asked) => Ok(asked),
    }
}
