//! `hostNetwork` pods: whether the programs send their connections to the agent or to the real
//! metadata service.
//!
//! Their sockets are in the node's network namespace, so the programs identify the pod by its
//! cgroup. The kubelet creates the cgroup before it starts a container: if the server has announced
//! the pod by then, the programs know what to do with its first connection.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_common::pod_uid::PodUid;
use kiam_common::watch;
use kiam_ebpf::{MAX_HOST_PODS, host_pod};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::cgroup::pod_of;
use crate::caller::PodRef;
use crate::view::{Outcome, Pod, Snapshot, View};

/// Interval for retries, when directories cannot be watched or the map cannot be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Treatment of `hostNetwork` pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HostNetwork {
    /// All keep the node's metadata service
    Passthrough,
    /// Those with a role get its credentials; others keep the node's metadata service
    Annotated,
    /// Those with a role get its credentials; others are refused
    Deny,
}

/// Pods that keep the real metadata service: a namespace, and a name or a prefix of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exemption {
    namespace: String,
    name: String,
    is_prefix: bool,
}

impl Exemption {
    fn is_for(&self, pod: &Pod) -> bool {
        let name = &*pod.facts.name;
        let named = if self.is_prefix {
            name.starts_with(&self.name)
        } else {
            name == self.name
        };
        named && *pod.facts.namespace == *self.namespace
    }
}

impl std::str::FromStr for Exemption {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected NAMESPACE/POD, as in kube-system/aws-node-*";
        let (namespace, name) = text.split_once('/').ok_or(expected)?;
        let (name, is_prefix) = match name.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (name, false),
        };
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if namespace.is_empty()
            || name.is_empty()
            || !format!("{namespace}{name}").chars().all(valid)
        {
            return Err(expected);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            is_prefix,
        })
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_prefix { "*" } else { "" };
        write!(f, "{}/{}{star}", self.namespace, self.name)
    }
}

/// Choices by which the targets of pods are decided.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    /// `--host-network-pods`
    pub(crate) mode: HostNetwork,
    /// `--host-network-exempt`
    pub(crate) exempt: Vec<Exemption>,
    /// The agent's own pod, which must not be redirected to itself.
    pub(crate) own: Option<PodUid>,
}

type Targets = HashMap<MapData, u64, u32>;

/// The targets of `hostNetwork` pods, in a map of the programs.
#[derive(Clone)]
pub(crate) struct HostPods {
    map: Arc<Mutex<Targets>>,
    pods: PathBuf,
}

/// A redirection of one pod to the agent, regardless of its target. It ends when this is dropped.
pub(crate) struct TemporaryRedirect {
    map: OwnedMutexGuard<Targets>,
    cgroup: u64,
    before: Option<u32>,
}

impl Drop for TemporaryRedirect {
    fn drop(&mut self) {
        let restored = match self.before {
            Some(target) => self.map.insert(self.cgroup, target, 0),
            None => self.map.remove(&self.cgroup),
        };
        if let Err(error) = restored {
            tracing::error!(%error, "cannot restore the target of the agent's own pod");
        }
    }
}

impl fmt::Debug for TemporaryRedirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemporaryRedirect")
            .field("cgroup", &self.cgroup)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HostPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPods").finish_non_exhaustive()
    }
}

impl HostPods {
    pub(super) fn new(map: Map, pods: &Path) -> Result<Self, MapError> {
        Ok(Self {
            map: Arc::new(Mutex::new(HashMap::try_from(map)?)),
            pods: pods.to_owned(),
        })
    }

    /// Returns the id of a pod's cgroup on this node.
    pub(crate) fn cgroup_of(&self, own: &PodUid) -> Option<u64> {
        let cgroups = self.cgroups().into_iter();
        let mut own = cgroups.filter(|(pod, _)| match pod {
            PodRef::Uid(uid) | PodRef::StaticHash(uid) => uid == own,
            PodRef::Address(_) => false,
        });
        own.next().map(|(_, id)| id)
    }

    /// Redirects the pod of this cgroup to the agent until the result is dropped. No other target
    /// is changed meanwhile.
    pub(crate) async fn redirect_temporarily(
        &self,
        cgroup: u64,
    ) -> Result<TemporaryRedirect, MapError> {
        let mut map = Arc::clone(&self.map).lock_owned().await;
        let before = match map.get(&cgroup, 0) {
            Ok(target) => Some(target),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(error),
        };
        map.insert(cgroup, host_pod::AGENT, 0)?;
        Ok(TemporaryRedirect {
            map,
            cgroup,
            before,
        })
    }

    /// Updates the targets when pods are added, removed or changed, until `stop`.
    pub(crate) async fn run(self, choices: Choices, view: View, stop: CancellationToken) {
        let mut changes = view.changes();
        loop {
            let folders = self.folders();
            let mut watcher = match watch::folders(&folders) {
                Ok(watcher) => Some(watcher),
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the pods' cgroups");
                    None
                }
            };
            loop {
                let updated = self.update(&choices, &view).await;
                if let Err(error) = &updated {
                    tracing::error!(%error, "cannot update the targets of hostNetwork pods");
                }
                // The directory of a QoS class was created or removed.
                if self.folders() != folders {
                    break;
                }
                if updated.is_ok() && choices.mode == HostNetwork::Passthrough {
                    // Targets of an earlier agent are removed, and there are no others: nothing is
                    // to be watched.
                    drop(watcher);
                    return stop.cancelled().await;
                }
                let healthy = updated.is_ok() && watcher.is_some();
                let cgroups_changed = async {
                    match &mut watcher {
                        Some(watcher) => watcher.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    more = changes.next() => if !more { return },
                    () = cgroups_changed => {}
                    () = tokio::time::sleep(RETRY_INTERVAL), if !healthy => break,
                }
            }
        }
    }

    /// Returns the cgroup of all pods, and those of the QoS classes in it.
    fn folders(&self) -> Vec<PathBuf> {
        let below = std::fs::read_dir(&self.pods)
            .into_iter()
            .flatten()
            .flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let classes = below
            .map(|entry| entry.path())
            .filter(|path| self.pod(path).is_none());
        let mut folders: Vec<_> = [self.pods.clone()].into_iter().chain(classes).collect();
        folders.sort();
        folders
    }

    fn pod(&self, cgroup: &Path) -> Option<PodRef> {
        pod_of(cgroup.strip_prefix(&self.pods).ok()?)
    }

    async fn update(&self, choices: &Choices, view: &View) -> Result<(), MapError> {
        let mut map = self.map.lock().await;
        let wanted = wanted(choices, &view.load(), &self.cgroups());
        let known: BTreeMap<u64, u32> = map.iter().collect::<Result<_, _>>()?;
        // Removals first, to make room for insertions.
        let gone: BTreeSet<_> = known.keys().filter(|id| !wanted.contains_key(id)).collect();
        for id in gone {
            map.remove(id)?;
        }
        for (id, target) in wanted {
            if known.get(&id) != Some(&target) {
                map.insert(id, target, 0)?;
            }
        }
        Ok(())
    }

    /// Returns the existing cgroups of pods, and their ids.
    fn cgroups(&self) -> Vec<(PodRef, u64)> {
        let mut found = Vec::new();
        for folder in self.folders() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if let Some(pod) = self.pod(&entry.path()) {
                    // The id of a cgroup is its inode number.
                    found.push((pod, entry.ino()));
                }
            }
        }
        found
    }
}

/// Returns the targets by cgroup id.
fn wanted(choices: &Choices, snapshot: &Snapshot, cgroups: &[(PodRef, u64)]) -> BTreeMap<u64, u32> {
    if choices.mode == HostNetwork::Passthrough {
        return BTreeMap::new();
    }
    let target = |pod: &PodRef| {
        let found = match pod {
            PodRef::Uid(uid) if choices.own.as_ref() == Some(uid) => return Some(host_pod::REAL),
            PodRef::Uid(uid) => snapshot.by_uid(uid.as_str()),
            PodRef::StaticHash(hash) => snapshot.by_static_hash(hash.as_str()),
            // Cgroups are never looked up by address.
            PodRef::Address(_) => None,
        }?;
        if !found.facts.host_network {
            return None;
        }
        if choices.exempt.iter().any(|exempt| exempt.is_for(found)) {
            return Some(host_pod::REAL);
        }
        (found.outcome != Outcome::NoRole).then_some(host_pod::AGENT)
    };
    let wanted = cgroups
        .iter()
        .filter_map(|(pod, id)| Some((*id, target(pod)?)));
    wanted.take(MAX_HOST_PODS as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Outcome, PodFacts, Projection, Update};

    const UIDS: [&str; 5] = ["role", "none", "forbidden", "exempt", "pod-network"];

    fn snapshot() -> View {
        let (mut projection, view) = Projection::new();
        projection.begin();
        for uid in UIDS {
            let facts = PodFacts {
                uid: PodUid::from(uid),
                namespace: "kube-system".into(),
                name: format!("{uid}-x7z2p").into(),
                service_account: "default".into(),
                addresses: Box::new([]),
                host_network: uid != "pod-network",
                static_hash: None,
            };
            let outcome = match uid {
                "none" => Outcome::NoRole,
                _ => Outcome::Forbidden {
                    role: "r".into(),
                    reason: "not permitted".into(),
                },
            };
            projection.apply(Update::Applied(facts, outcome)).unwrap();
        }
        projection.apply(Update::Synced).unwrap();
        projection.publish();
        view
    }

    #[test]
    fn targets_depend_on_mode_role_and_name() {
        let view = snapshot();
        let cgroups: Vec<_> = (UIDS.into_iter().chain(["own", "unknown"]))
            .zip(1..)
            .map(|(uid, id)| (PodRef::Uid(PodUid::new(uid)), id))
            .collect();
        let choices = |mode| Choices {
            mode,
            exempt: vec!["kube-system/exempt-*".parse().unwrap()],
            own: Some(PodUid::new("own")),
        };
        let targets = |mode| wanted(&choices(mode), &view.load(), &cgroups);
        let (real, agent) = (host_pod::REAL, host_pod::AGENT);
        let expected = BTreeMap::from([(1, agent), (3, agent), (4, real), (6, real)]);
        assert_eq!(targets(HostNetwork::Annotated), expected);
        assert_eq!(targets(HostNetwork::Deny), expected);
        assert_eq!(targets(HostNetwork::Passthrough), BTreeMap::new());
    }

    #[test]
    fn exemptions_are_parsed_and_printed() {
        for text in ["kube-system/aws-node-*", "kube-system/kube-proxy"] {
            assert_eq!(text.parse::<Exemption>().unwrap().to_string(), text);
        }
        for text in [
            "aws-node",
            "/x",
            "kube-system/",
            "a/b/c",
            "kube-system/*x",
            "",
        ] {
            assert!(text.parse::<Exemption>().is_err(), "{text}");
        }
    }
}
