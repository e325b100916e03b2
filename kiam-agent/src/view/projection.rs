//! The writer of the view: folds a stream's updates into the next snapshot.
//!
//! What a stream says replaces what an earlier one said pod by pod, and wholly when the stream
//! is synced. A pod that keeps its role over a break keeps its credentials until newer ones come,
//! since a server that has just begun, or cannot reach STS, has none to send yet.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;
use tokio::sync::watch;

use super::credentials::{CredentialsError, Issued};
use super::gone::Gone;
use super::pod::{Grant, Outcome, Pod};
use super::update::{Decision, Failure, PodFacts, Uid, Update};
use super::{Claim, Snapshot, View};

/// More pods than any node has: what a broken server may make the agent hold.
const MAX_PODS: usize = 10_000;

/// Why an update was not used, or not as it was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Credentials, or news of them, that no pod was granted.
    #[error("the server spoke of identity {identity}, which no pod of the node was granted")]
    UnknownIdentity {
        /// Whose.
        identity: u64,
    },
    /// One identity, and two roles.
    #[error("the server named identity {identity} for {role} after it had named it for {other}")]
    AnotherRole {
        /// Which.
        identity: u64,
        /// The role of the pod that is refused.
        role: RoleArn,
        /// The role that the identity has.
        other: RoleArn,
    },
    /// Credentials that cannot be served.
    #[error("the server sent credentials of {role} that cannot be used: {source}")]
    Credentials {
        /// The role.
        role: RoleArn,
        /// What is wrong with them.
        source: CredentialsError,
    },
    /// A node does not have that many pods.
    #[error("the server named more than {MAX_PODS} pods for one node; pod {uid} is left out")]
    TooManyPods {
        /// The one too many.
        uid: Uid,
    },
}

impl Refused {
    /// Its kind, for a metric's label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIdentity { .. } => "unknown_identity",
            Self::AnotherRole { .. } => "another_role",
            Self::Credentials { .. } => "credentials",
            Self::TooManyPods { .. } => "too_many_pods",
        }
    }
}

/// What the current stream said about a pod.
#[derive(Debug)]
struct Told {
    facts: Arc<PodFacts>,
    decision: Decision,
    /// Credentials of the same role that the pod had before this stream.
    carried: Option<Arc<Issued>>,
    /// The pod stays as it was before this stream until the stream is synced.
    held: bool,
}

/// What the current stream said about an identity, and which pods were granted it.
#[derive(Debug)]
struct Identity {
    role: RoleArn,
    pods: BTreeSet<Uid>,
    issued: Option<Arc<Issued>>,
    failure: Option<Arc<Failure>>,
}

/// Writes the view.
#[derive(Debug)]
pub struct Projection {
    told: HashMap<Uid, Told>,
    identities: HashMap<u64, Identity>,
    synced: bool,
    /// What the next snapshot will hold: this stream's pods over the earlier ones'.
    pods: HashMap<Uid, Arc<Pod>>,
    gone: Arc<Gone>,
    complete: bool,
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Sender<()>,
}

impl Projection {
    /// An empty view and its writer.
    #[must_use]
    pub fn new() -> (Self, View) {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (changes, changed) = watch::channel(());
        let view = View {
            current: Arc::clone(&current),
            changes: changed,
        };
        let projection = Self {
            told: HashMap::new(),
            identities: HashMap::new(),
            synced: false,
            pods: HashMap::new(),
            gone: Arc::default(),
            complete: false,
            current,
            changes,
        };
        (projection, view)
    }

    /// A new stream begins: nothing has been said, and what is known stays for now.
    pub fn begin(&mut self) {
        self.told.clear();
        self.identities.clear();
        self.synced = false;
    }

    /// Takes in one update. Readers see it after [`Projection::publish`].
    ///
    /// # Errors
    /// When the update is not usable. What it would have granted is not granted.
    pub fn apply(&mut self, update: Update) -> Result<(), Refused> {
        match update {
            Update::Applied(facts, decision) => self.pod_applied(facts, decision),
            Update::Removed(uid) => {
                if let Some(pod) = self.pods.get(&uid) {
                    Arc::make_mut(&mut self.gone).add(uid.clone(), &pod.to_string());
                }
                self.remove(&uid);
                Ok(())
            }
            Update::Issued {
                identity,
                credentials,
            } => self.issued(identity, &credentials),
            Update::Failed { identity, failure } => self.failed(identity, failure),
            Update::Synced => {
                self.synced();
                Ok(())
            }
        }
    }

    /// Shows readers what was taken in, and wakes those who wait.
    pub fn publish(&self) {
        let mut static_pods: HashMap<Box<str>, Option<Uid>> = HashMap::new();
        for (uid, pod) in &self.pods {
            if let Some(hash) = &pod.facts.static_hash {
                static_pods
                    .entry(hash.clone())
                    .and_modify(|claimed| *claimed = None)
                    .or_insert_with(|| Some(uid.clone()));
            }
        }
        let mut addresses: HashMap<IpAddr, Claim> = HashMap::new();
        for (uid, pod) in self.pods.iter().filter(|(_, pod)| !pod.facts.host_network) {
            for address in &pod.facts.addresses {
                addresses
                    .entry(address.to_canonical())
                    .and_modify(|claim| claim.add(uid))
                    .or_insert_with(|| Claim::One(uid.clone()));
            }
        }
        let unique = |(hash, uid): (Box<str>, Option<Uid>)| Some((hash, uid?));
        self.current.store(Arc::new(Snapshot {
            pods: self.pods.clone(),
            static_pods: static_pods.into_iter().filter_map(unique).collect(),
            addresses,
            gone: Arc::clone(&self.gone),
            complete: self.complete,
        }));
        self.changes.send_replace(());
    }

    fn pod_applied(&mut self, facts: PodFacts, decision: Decision) -> Result<(), Refused> {
        let uid = facts.uid.clone();
        if self.gone.name(uid.as_str()).is_some() {
            Arc::make_mut(&mut self.gone).remove(uid.as_str());
        }
        if self.told.len() >= MAX_PODS && !self.told.contains_key(&uid) {
            self.remove(&uid);
            return Err(Refused::TooManyPods { uid });
        }
        let earlier = self.told.remove(&uid);
        #[cfg(feature = "planted-role-kept")]
        let decision = match &earlier {
            Some(told) if matches!(told.decision, Decision::Granted { .. }) => {
                told.decision.clone()
            }
            _ => decision,
        };
        if let Some(told) = &earlier {
            self.release(&uid, &told.decision, &decision);
        }
        let (decision, refused) = match self.acquire(&uid, &decision) {
            Ok(()) => (decision, Ok(())),
            Err(refused) => {
                let awaiting = "a server that names one role for one identity".into();
                (Decision::Undecided { awaiting }, Err(refused))
            }
        };
        let undecided = matches!(decision, Decision::Undecided { .. });
        let (carried, held) = match earlier {
            Some(told) if told.decision == decision => (told.carried, told.held),
            Some(told) if told.held => (self.carried(&uid, &decision), undecided),
            Some(_) => (None, false),
            None if self.synced => (None, false),
            None => (
                self.carried(&uid, &decision),
                undecided && refused.is_ok() && self.pods.contains_key(&uid),
            ),
        };
        let told = Told {
            facts: Arc::new(facts),
            decision,
            carried,
            held,
        };
        self.told.insert(uid.clone(), told);
        self.join(&uid);
        refused
    }

    fn issued(&mut self, identity: u64, credentials: &SessionCredentials) -> Result<(), Refused> {
        let Some(known) = self.identities.get_mut(&identity) else {
            return Err(Refused::UnknownIdentity { identity });
        };
        let outcome = match Issued::new(credentials, &known.role) {
            Ok(issued) => {
                known.issued = Some(Arc::new(issued));
                known.failure = None;
                for uid in &known.pods {
                    if let Some(told) = self.told.get_mut(uid) {
                        told.carried = None;
                    }
                }
                Ok(())
            }
            Err(source) => {
                let role = known.role.clone();
                let refused = Refused::Credentials { role, source };
                known.failure = Some(Arc::new(Failure {
                    error: refused.to_string().into(),
                    permanent: false,
                }));
                Err(refused)
            }
        };
        self.join_all_of(identity);
        outcome
    }

    fn failed(&mut self, identity: u64, failure: Failure) -> Result<(), Refused> {
        let Some(known) = self.identities.get_mut(&identity) else {
            return Err(Refused::UnknownIdentity { identity });
        };
        known.failure = Some(Arc::new(failure));
        self.join_all_of(identity);
        Ok(())
    }

    fn synced(&mut self) {
        self.synced = true;
        self.complete = true;
        let Self { told, pods, .. } = self;
        pods.retain(|uid, _| told.contains_key(uid));
        let mut held = Vec::new();
        for (uid, told) in told {
            if std::mem::take(&mut told.held) {
                held.push(uid.clone());
            }
        }
        for uid in held {
            self.join(&uid);
        }
    }

    fn remove(&mut self, uid: &Uid) {
        if let Some(told) = self.told.remove(uid) {
            self.release(uid, &told.decision, &Decision::NoRole);
        }
        self.pods.remove(uid);
    }

    /// Counts a pod to the identity that it is granted.
    fn acquire(&mut self, uid: &Uid, decision: &Decision) -> Result<(), Refused> {
        let Decision::Granted { role, identity } = decision else {
            return Ok(());
        };
        let known = self
            .identities
            .entry(*identity)
            .or_insert_with(|| Identity {
                role: role.clone(),
                pods: BTreeSet::new(),
                issued: None,
                failure: None,
            });
        if known.role != *role {
            return Err(Refused::AnotherRole {
                identity: *identity,
                role: role.clone(),
                other: known.role.clone(),
            });
        }
        known.pods.insert(uid.clone());
        Ok(())
    }

    /// Uncounts a pod from the identity that it was granted, and forgets an identity that no
    /// pod is granted any more.
    fn release(&mut self, uid: &Uid, before: &Decision, after: &Decision) {
        if before == after {
            return;
        }
        if let Decision::Granted { identity, .. } = before
            && let Some(known) = self.identities.get_mut(identity)
        {
            known.pods.remove(uid);
            if known.pods.is_empty() {
                self.identities.remove(identity);
            }
        }
    }

    /// The credentials that a pod has from an earlier stream, if it still has their role.
    fn carried(&self, uid: &Uid, decision: &Decision) -> Option<Arc<Issued>> {
        let Decision::Granted { role, .. } = decision else {
            return None;
        };
        match &self.pods.get(uid)?.outcome {
            Outcome::Granted(grant) if grant.role == *role => grant.issued.clone(),
            _ => None,
        }
    }

    fn join_all_of(&mut self, identity: u64) {
        let pods = self
            .identities
            .get(&identity)
            .map(|known| known.pods.clone());
        for uid in pods.iter().flatten() {
            self.join(uid);
        }
    }

    /// Makes the pod that readers see of what the stream said.
    fn join(&mut self, uid: &Uid) {
        let Some(told) = self.told.get(uid).filter(|told| !told.held) else {
            return;
        };
        let outcome = match &told.decision {
            Decision::NoRole => Outcome::NoRole,
            Decision::Forbidden { role, reason } => Outcome::Forbidden {
                role: role.clone(),
                reason: reason.clone(),
            },
            Decision::Undecided { awaiting } => Outcome::Undecided {
                awaiting: awaiting.clone(),
            },
            Decision::Granted { role, identity } => {
                let known = self.identities.get(identity);
                let issued = known.and_then(|known| known.issued.clone());
                Outcome::Granted(Grant {
                    role: role.clone(),
                    listing: Bytes::copy_from_slice(role.name().as_bytes()),
                    issued: issued.or_else(|| told.carried.clone()),
                    failure: known.and_then(|known| known.failure.clone()),
                })
            }
        };
        let facts = Arc::clone(&told.facts);
        self.pods
            .insert(uid.clone(), Arc::new(Pod { facts, outcome }));
    }
}
