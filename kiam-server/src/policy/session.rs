//! The parameters of the session of a granted pod: its name, duration and tags.

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

/// Settings for the sessions of all pods.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// The session name of pods without an annotation.
    pub name: String,
    /// The duration of sessions of pods without an annotation.
    pub duration: Duration,
    /// The longest duration that a pod may request.
    pub longest: Duration,
    pub tags: Vec<SessionTag>,
    /// The value of [`SessionTag::ClusterName`].
    pub cluster: String,
    /// True if sessions have a source identity of namespace and service account.
    pub source_identity: bool,
}

/// A session tag. The keys equal those of EKS Pod Identity where that has the same tag, so that one
/// IAM policy works with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum SessionTag {
    /// kubernetes-namespace
    Namespace,
    /// kubernetes-service-account
    ServiceAccount,
    /// kubernetes-pod-name; makes one session, and one STS call, for each pod
    PodName,
    /// kubernetes-pod-uid; makes one session, and one STS call, for each pod
    PodUid,
    /// kubernetes-node-name; makes one session for each role and node
    NodeName,
    /// kubernetes-cluster-name, the value of --cluster-name
    ClusterName,
}

impl SessionTag {
    /// Returns the key of the tag.
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
            Self::PodUid => pod.uid.as_str(),
            Self::NodeName => pod.node.as_deref().unwrap_or_default(),
            Self::ClusterName => &settings.cluster,
        }
    }
}

/// Returns the identity of the session of a pod. It contains only the configured tags, so that pods
/// with the same values share one session.
///
/// # Errors
/// When the annotations of the pod are invalid.
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
    let refused = |why: String| {
        Err(format!(
            "invalid annotation {SESSION_DURATION} of the pod: {why}"
        ))
    };
    match duration::parse(text) {
        Err(error) => refused(super::truncated(&error.to_string())),
        Ok(asked) if asked < SHORTEST || asked > settings.longest => refused(format!(
            "{} is not between {} and {} (--max-session-duration)",
            duration::format(asked),
            duration::format(SHORTEST),
            duration::format(settings.longest),
        )),
        Ok(asked) => Ok(asked),
    }
}
