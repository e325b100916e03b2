//! Writer of the view: folds the updates of a stream into the next snapshot.
//!
//! A stream replaces the state of earlier ones pod by pod, and completely when it is synced. A pod
//! that keeps its role keeps its credentials until newer ones arrive, since a server that has just
//! started, or cannot reach STS, has none to send yet.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use kiam_common::credentials::SessionCredentials;
use kiam_common::outcome::Outcome;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::RoleArn;
use tokio::sync::watch;

use super::credentials::{CredentialsError, Issued};
use super::gone::Gone;
use super::pod::{Grant, Pod};
use super::update::{Failure, GrantedRole, PodFacts, Update};
use super::{Claim, Snapshot, View};

/// Maximum number of pods, more than any node has: limits the memory that a broken server uses.
const MAX_PODS: usize = 10_000;

/// Reason why an update was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Credentials, or a failure to get them, for an identity of no pod.
    #[error("the server sent identity {identity}, which no pod of the node was granted")]
    UnknownIdentity {
        /// The identity.
        identity: u64,
    },
    /// An identity with two roles.
    #[error("the server sent identity {identity} with {role} after sending it with {other}")]
    AnotherRole {
        /// The identity.
        identity: u64,
        /// The role that was sent now.
        role: RoleArn,
        /// The role that the identity has.
        other: RoleArn,
    },
    /// Credentials that cannot be served.
    #[error("the server sent invalid credentials of {role}: {source}")]
    Credentials {
        /// The role.
        role: RoleArn,
        /// The invalid part.
        source: CredentialsError,
    },
    /// More pods than a node can have.
    #[error("the server sent more than {MAX_PODS} pods for one node; pod {uid} is left out")]
    TooManyPods {
        /// The rejected pod.
        uid: PodUid,
    },
}

impl UpdateError {
    /// Returns the value of the label `reason`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIdentity { .. } => "unknown_identity",
            Self::AnotherRole { .. } => "another_role",
            Self::Credentials { .. } => "credentials",
            Self::TooManyPods { .. } => "too_many_pods",
        }
    }
}

/// State of a pod in the current stream.
#[derive(Debug)]
struct PodState {
    facts: Arc<PodFacts>,
    outcome: Outcome<GrantedRole>,
    /// Credentials of the same role from an earlier stream.
    carried: Option<Arc<Issued>>,
    /// True if the pod keeps its state from an earlier stream until this one is synced.
    held: bool,
}

/// State of an identity in the current stream, and the pods that were granted it.
#[derive(Debug)]
struct Identity {
    role: RoleArn,
    pods: BTreeSet<PodUid>,
    issued: Option<Arc<Issued>>,
    failure: Option<Arc<Failure>>,
}

/// Writer of the view.
#[derive(Debug)]
pub struct Projection {
    states: HashMap<PodUid, PodState>,
    identities: HashMap<u64, Identity>,
    synced: bool,
    /// The pods of the next snapshot: those of this stream over those of earlier ones.
    pods: HashMap<PodUid, Arc<Pod>>,
    gone: Arc<Gone>,
    complete: bool,
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Sender<()>,
}

impl Projection {
    /// Creates an empty view and its writer.
    pub fn new() -> (Self, View) {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (changes, changed) = watch::channel(());
        let view = View {
            current: Arc::clone(&current),
            changes: changed,
        };
        let projection = Self {
            states: HashMap::new(),
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

    /// Begins a new stream: its state is empty, and the snapshot stays for now.
    pub fn begin(&mut self) {
        self.states.clear();
        self.identities.clear();
        self.synced = false;
    }

    /// Applies an update. Readers see it after [`Projection::publish`]. A rejected update grants
    /// nothing.
    pub fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        match update {
            Update::Applied(facts, outcome) => self.pod_applied(facts, outcome),
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

    /// Publishes a snapshot, and wakes readers that wait.
    pub fn publish(&self) {
        let mut static_pods: HashMap<Box<str>, Option<PodUid>> = HashMap::new();
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
        let unique = |(hash, uid): (Box<str>, Option<PodUid>)| Some((hash, uid?));
        self.current.store(Arc::new(Snapshot {
            pods: self.pods.clone(),
            static_pods: static_pods.into_iter().filter_map(unique).collect(),
            addresses,
            gone: Arc::clone(&self.gone),
            complete: self.complete,
        }));
        self.changes.send_replace(());
    }

    fn pod_applied(
        &mut self,
        facts: PodFacts,
        outcome: Outcome<GrantedRole>,
    ) -> Result<(), UpdateError> {
        let uid = facts.uid.clone();
        if self.gone.name(uid.as_str()).is_some() {
            Arc::make_mut(&mut self.gone).remove(uid.as_str());
        }
        if self.states.len() >= MAX_PODS && !self.states.contains_key(&uid) {
            self.remove(&uid);
            return Err(UpdateError::TooManyPods { uid });
        }
        let earlier = self.states.remove(&uid);
        if let Some(state) = &earlier {
            self.release(&uid, &state.outcome, &outcome);
        }
        let (outcome, result) = match self.acquire(&uid, &outcome) {
            Ok(()) => (outcome, Ok(())),
            Err(error) => {
                let awaiting = "a server that sends one role for each identity".into();
                (Outcome::Undecided { awaiting }, Err(error))
            }
        };
        let undecided = matches!(outcome, Outcome::Undecided { .. });
        let (carried, held) = match earlier {
            Some(state) if state.outcome == outcome => (state.carried, state.held),
            Some(state) if state.held => (self.carried(&uid, &outcome), undecided),
            Some(_) => (None, false),
            None if self.synced => (None, false),
            None => (
                self.carried(&uid, &outcome),
                undecided && result.is_ok() && self.pods.contains_key(&uid),
            ),
        };
        let state = PodState {
            facts: Arc::new(facts),
            outcome,
            carried,
            held,
        };
        self.states.insert(uid.clone(), state);
        self.join(&uid);
        result
    }

    fn issued(
        &mut self,
        identity: u64,
        credentials: &SessionCredentials,
    ) -> Result<(), UpdateError> {
        let Some(known) = self.identities.get_mut(&identity) else {
            return Err(UpdateError::UnknownIdentity { identity });
        };
        let result = match Issued::new(credentials, &known.role) {
            Ok(issued) => {
                known.issued = Some(Arc::new(issued));
                known.failure = None;
                for uid in &known.pods {
                    if let Some(state) = self.states.get_mut(uid) {
                        state.carried = None;
                    }
                }
                Ok(())
            }
            Err(source) => {
                let role = known.role.clone();
                let error = UpdateError::Credentials { role, source };
                known.failure = Some(Arc::new(Failure {
                    error: error.to_string().into(),
                    permanent: false,
                }));
                Err(error)
            }
        };
        self.join_all_of(identity);
        result
    }

    fn failed(&mut self, identity: u64, failure: Failure) -> Result<(), UpdateError> {
        let Some(known) = self.identities.get_mut(&identity) else {
            return Err(UpdateError::UnknownIdentity { identity });
        };
        known.failure = Some(Arc::new(failure));
        self.join_all_of(identity);
        Ok(())
    }

    fn synced(&mut self) {
        self.synced = true;
        self.complete = true;
        let Self { states, pods, .. } = self;
        pods.retain(|uid, _| states.contains_key(uid));
        let mut held = Vec::new();
        for (uid, state) in states {
            if std::mem::take(&mut state.held) {
                held.push(uid.clone());
            }
        }
        for uid in held {
            self.join(&uid);
        }
    }

    fn remove(&mut self, uid: &PodUid) {
        if let Some(state) = self.states.remove(uid) {
            self.release(uid, &state.outcome, &Outcome::NoRole);
        }
        self.pods.remove(uid);
    }

    /// Adds a pod to the identity that it is granted.
    fn acquire(&mut self, uid: &PodUid, outcome: &Outcome<GrantedRole>) -> Result<(), UpdateError> {
        let Outcome::Granted(GrantedRole { role, identity }) = outcome else {
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
            return Err(UpdateError::AnotherRole {
                identity: *identity,
                role: role.clone(),
                other: known.role.clone(),
            });
        }
        known.pods.insert(uid.clone());
        Ok(())
    }

    /// Removes a pod from the identity that it was granted, and an identity without pods.
    fn release(
        &mut self,
        uid: &PodUid,
        before: &Outcome<GrantedRole>,
        after: &Outcome<GrantedRole>,
    ) {
        if before == after {
            return;
        }
        if let Outcome::Granted(GrantedRole { identity, .. }) = before
            && let Some(known) = self.identities.get_mut(identity)
        {
            known.pods.remove(uid);
            if known.pods.is_empty() {
                self.identities.remove(identity);
            }
        }
    }

    /// Returns the credentials of a pod from an earlier stream, if it still has their role.
    fn carried(&self, uid: &PodUid, outcome: &Outcome<GrantedRole>) -> Option<Arc<Issued>> {
        let Outcome::Granted(GrantedRole { role, .. }) = outcome else {
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

    /// Rebuilds a pod of the snapshot from the state of the stream.
    fn join(&mut self, uid: &PodUid) {
        let Some(state) = self.states.get(uid).filter(|state| !state.held) else {
            return;
        };
        let outcome = state.outcome.clone().map(|GrantedRole { role, identity }| {
            let known = self.identities.get(&identity);
            let issued = known.and_then(|known| known.issued.clone());
            Grant {
                listing: Bytes::copy_from_slice(role.name().as_bytes()),
                role,
                issued: issued.or_else(|| state.carried.clone()),
                failure: known.and_then(|known| known.failure.clone()),
            }
        });
        let facts = Arc::clone(&state.facts);
        self.pods
            .insert(uid.clone(), Arc::new(Pod { facts, outcome }));
    }
}
