//! Which `hostNetwork` pods the programs send to the agent, and which to the real metadata service.
//!
//! A socket of theirs is in the node's own network namespace, so its pod is told by its cgroup. The
//! kubelet makes that before it starts a container: what becomes of a pod is known to the programs
//! by then, if the server has told of the pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use kiam_common::watch;
use kiam_ebpf::{MAX_HOST_PODS, host_pod};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::cgroup::pod_of;
use crate::caller::{PodRef, PodUid};
use crate::view::{Outcome, Pod, Snapshot, View};

/// Folders that cannot be watched, or a map that cannot be written, are tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What becomes of `hostNetwork` pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HostNetwork {
    /// They keep the node's own metadata service
    Passthrough,
    /// Those with a role get the role's credentials; others keep the node's own metadata service
    Annotated,
    /// Those with a role get the role's credentials; others are refused
    Deny,
}

/// `hostNetwork` pods that keep the real metadata service: a namespace, and a name or how it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    namespace: String,
    name: String,
    begins: bool,
}

impl Exemption {
    fn is_for(&self, pod: &Pod) -> bool {
        let name = &*pod.facts.name;
        let named = if self.begins {
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
        let (name, begins) = match name.strip_suffix('*') {
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
            begins,
        })
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.begins { "*" } else { "" };
        write!(f, "{}/{}{star}", self.namespace, self.name)
    }
}

/// What an agent decides by.
#[derive(Debug, Clone)]
pub struct Choices {
    /// `--host-network-pods`
    pub mode: HostNetwork,
    /// `--host-network-exempt`
    pub exempt: Vec<Exemption>,
    /// The agent's own pod, which never is its own client.
    pub own: Option<PodUid>,
}

type Fates = HashMap<MapData, u64, u32>;

/// Tells the programs.
#[derive(Clone)]
pub struct HostPods {
    map: Arc<Mutex<Fates>>,
    pods: PathBuf,
}

/// One pod goes to the agent, whatever else is to become of it; dropping this ends that.
pub struct Lent {
    map: OwnedMutexGuard<Fates>,
    cgroup: u64,
    before: Option<u32>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let restored = match self.before {
            Some(fate) => self.map.insert(self.cgroup, fate, 0),
            None => self.map.remove(&self.cgroup),
        };
        if let Err(error) = restored {
            tracing::error!(%error, "cannot tell the kernel programs of the agent's own pod");
        }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
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

    /// The cgroup of a pod on this node, by its id.
    #[must_use]
    pub fn cgroup_of(&self, own: &PodUid) -> Option<u64> {
        let cgroups = self.cgroups().into_iter();
        let mut own = cgroups.filter(|(pod, _)| match pod {
            PodRef::Uid(uid) | PodRef::StaticHash(uid) => uid == own,
            PodRef::Address(_) => false,
        });
        own.next().map(|(_, id)| id)
    }

    /// Has the programs send the pod of this cgroup to the agent for a while. Nothing else is told
    /// meanwhile.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub async fn lend(&self, cgroup: u64) -> Result<Lent, MapError> {
        let mut map = Arc::clone(&self.map).lock_owned().await;
        let before = match map.get(&cgroup, 0) {
            Ok(fate) => Some(fate),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(error),
        };
        map.insert(cgroup, host_pod::AGENT, 0)?;
        Ok(Lent {
            map,
            cgroup,
            before,
        })
    }

    /// Tells the programs of each pod that comes, goes or changes, until told to stop.
    pub async fn keep(self, choices: Choices, view: View, stop: CancellationToken) {
        let mut changes = view.changes();
        loop {
            let folders = self.folders();
            let mut news = match watch::folders(&folders) {
                Ok(news) => Some(news),
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the pods' cgroups");
                    None
                }
            };
            loop {
                let told = self.tell(&choices, &view).await;
                if let Err(error) = &told {
                    tracing::error!(%error, "cannot tell the kernel programs of hostNetwork pods");
                }
                // A class of service has got its folder, or lost it.
                if self.folders() != folders {
                    break;
                }
                if told.is_ok() && choices.mode == HostNetwork::Passthrough {
                    // What an earlier agent told is taken back, and no pod is told of: nothing is watched.
                    drop(news);
                    return stop.cancelled().await;
                }
                let works = told.is_ok() && news.is_some();
                let heard = async {
                    match &mut news {
                        Some(news) => news.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    more = changes.next() => if !more { return },
                    () = heard => {}
                    () = tokio::time::sleep(AGAIN), if !works => break,
                }
            }
        }
    }

    /// The cgroup of all pods, and those of the classes of service in it.
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

    async fn tell(&self, choices: &Choices, view: &View) -> Result<(), MapError> {
        let mut map = self.map.lock().await;
        let wanted = wanted(choices, &view.load(), &self.cgroups());
        let known: BTreeMap<u64, u32> = map.iter().collect::<Result<_, _>>()?;
        // Who is gone makes room for who has come.
        let gone: BTreeSet<_> = known.keys().filter(|id| !wanted.contains_key(id)).collect();
        for id in gone {
            map.remove(id)?;
        }
        for (id, fate) in wanted {
            if known.get(&id) != Some(&fate) {
                map.insert(id, fate, 0)?;
            }
        }
        Ok(())
    }

    /// The pods' cgroups that there are, by their ids.
    fn cgroups(&self) -> Vec<(PodRef, u64)> {
        let mut found = Vec::new();
        for folder in self.folders() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if let Some(pod) = self.pod(&entry.path()) {
                    // A cgroup's id is its inode's number.
                    found.push((pod, entry.ino()));
                }
            }
        }
        found
    }
}

/// What becomes of which cgroup.
fn wanted(choices: &Choices, snapshot: &Snapshot, cgroups: &[(PodRef, u64)]) -> BTreeMap<u64, u32> {
    if choices.mode == HostNetwork::Passthrough {
        return BTreeMap::new();
    }
    let fate = |pod: &PodRef| {
        let found = match pod {
            PodRef::Uid(uid) if choices.own.as_ref() == Some(uid) => return Some(host_pod::REAL),
            PodRef::Uid(uid) => snapshot.by_uid(uid.as_str()),
            PodRef::StaticHash(hash) => snapshot.by_static_hash(hash.as_str()),
            // No cgroup is named by one.
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
        .filter_map(|(pod, id)| Some((*id, fate(pod)?)));
    wanted.take(MAX_HOST_PODS as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Decision, PodFacts, Projection, Uid, Update};

    const UIDS: [&str; 5] = ["role", "none", "forbidden", "exempt", "pod-network"];

    fn snapshot() -> View {
        let (mut projection, view) = Projection::new();
        projection.begin();
        for uid in UIDS {
            let facts = PodFacts {
                uid: Uid::from(uid),
                namespace: "kube-system".into(),
                name: format!("{uid}-x7z2p").into(),
                service_account: "default".into(),
                addresses: Box::new([]),
                host_network: uid != "pod-network",
                static_hash: None,
            };
            let decision = match uid {
                "none" => Decision::NoRole,
                _ => Decision::Forbidden {
                    role: "r".into(),
                    reason: "not permitted".into(),
                },
            };
            projection.apply(Update::Applied(facts, decision)).unwrap();
        }
        projection.apply(Update::Synced).unwrap();
        projection.publish();
        view
    }

    #[test]
    fn pods_are_told_by_mode_role_and_name() {
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
        let told = |mode| wanted(&choices(mode), &view.load(), &cgroups);
        let (real, agent) = (host_pod::REAL, host_pod::AGENT);
        let expected = BTreeMap::from([(1, agent), (3, agent), (4, real), (6, real)]);
        assert_eq!(told(HostNetwork::Annotated), expected);
        assert_eq!(told(HostNetwork::Deny), expected);
        assert_eq!(told(HostNetwork::Passthrough), BTreeMap::new());
    }

    #[test]
    fn exemptions_are_read_and_printed() {
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
