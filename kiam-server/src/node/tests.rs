//! The state of an agent equals the decisions of the policies, for any sequence of changes.

mod reports;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kiam_common::api::node::v1::pod_applied::Outcome as WireOutcome;
use kiam_common::api::node::v1::watch_response::Update;
use proptest::prelude::*;
use tokio::sync::{Notify, mpsc};

use super::session::Session;
use super::*;
use crate::cluster::Cluster;
use crate::cluster::object::{Annotations, Namespace, ObjectKey, ServiceAccount};
use crate::permitted::{Anchoring, Permitted};
use crate::policy::{Outcome, decide};
use crate::testing::{HOUR, PLENTY, TestClock, TestIssuer, pod, settings, store};

const BASE: &str = "arn:aws:iam::123456789012:role/";
const NODE: &str = "node-1";

/// The state of an agent, from the messages that it received.
#[derive(Debug, Default)]
struct Agent {
    pods: BTreeMap<String, String>,
    grants: HashMap<String, u64>,
    /// The role of the credentials of each identity.
    credentials: HashMap<u64, String>,
    synced: bool,
}

impl Agent {
    fn receive(&mut self, update: Update) {
        match update {
            Update::PodApplied(pod) => {
                let text = match pod.outcome.unwrap() {
                    WireOutcome::NoRole(_) => "no role".to_owned(),
                    WireOutcome::Granted(granted) => {
                        self.grants.insert(pod.uid.clone(), granted.identity);
                        self.pods
                            .insert(pod.uid, format!("granted {}", granted.role_arn));
                        return;
                    }
                    WireOutcome::Forbidden(forbidden) => format!("forbidden {}", forbidden.reason),
                    WireOutcome::Undecided(undecided) => format!("awaiting {}", undecided.awaiting),
                };
                self.grants.remove(&pod.uid);
                self.pods.insert(pod.uid, text);
            }
            Update::PodRemoved(removed) => {
                assert!(self.pods.remove(&removed.uid).is_some(), "removed twice");
                self.grants.remove(&removed.uid);
            }
            Update::CredentialsIssued(issued) => {
                assert!(
                    self.grants
                        .values()
                        .any(|identity| *identity == issued.identity),
                    "credentials for an identity that no pod was granted"
                );
                let role = issued.access_key_id.rsplit('/').next().unwrap().to_owned();
                self.credentials.insert(issued.identity, role);
            }
            Update::CredentialsFailed(failed) => {
                assert!(
                    self.grants
                        .values()
                        .any(|identity| *identity == failed.identity)
                );
            }
            Update::Synced(_) => {
                assert!(!self.synced, "synced twice");
                self.synced = true;
            }
        }
        let granted: Vec<u64> = self.grants.values().copied().collect();
        self.credentials
            .retain(|identity, _| granted.contains(identity));
    }

    /// Returns the role of the credentials that a pod would get.
    fn role_of(&self, uid: &str) -> Option<&String> {
        self.credentials.get(self.grants.get(uid)?)
    }
}

#[derive(Debug, Clone)]
enum Change {
    Pod {
        number: u8,
        on_node: bool,
        role: Option<u8>,
    },
    DeletePod(u8),
    Namespace(Option<u8>),
    DeleteNamespace,
    Account(Option<u8>),
    DeleteAccount,
    /// STS issues credentials, or fails.
    Sts(bool),
    /// Time passes, and the agent receives messages.
    Listen,
}

fn change() -> impl Strategy<Value = Change> {
    let role = || prop::option::of(0..3_u8);
    prop_oneof![
        4 => (0..4_u8, prop::bool::weighted(0.8), role())
            .prop_map(|(number, on_node, role)| Change::Pod { number, on_node, role }),
        1 => (0..4_u8).prop_map(Change::DeletePod),
        2 => role().prop_map(Change::Namespace),
        1 => Just(Change::DeleteNamespace),
        1 => role().prop_map(Change::Account),
        1 => Just(Change::DeleteAccount),
        1 => any::<bool>().prop_map(Change::Sts),
        4 => Just(Change::Listen),
    ]
}

fn apply(cluster: &Cluster, issuer: &TestIssuer, change: &Change) {
    let role = |role: u8| Box::from(format!("r{role}"));
    match change {
        Change::Pod {
            number,
            on_node,
            role: annotated,
        } => {
            let node = if *on_node { NODE } else { "node-2" };
            let mut pod = pod(&format!("uid-{number}"), "web", &format!("p{number}"), node);
            pod.annotations = Annotations {
                role: annotated.map(role),
                ..Annotations::default()
            }
            .boxed();
            cluster.apply(pod.into());
        }
        Change::DeletePod(number) => {
            cluster.delete(&ObjectKey::Pod(format!("uid-{number}").into()));
        }
        Change::Namespace(permitted) => {
            let expression = permitted.map(|role| format!("{BASE}r[0-{role}]"));
            cluster.apply(
                Namespace {
                    name: "web".into(),
                    permitted: Permitted::compile(expression.as_deref(), Anchoring::Whole),
                }
                .into(),
            );
        }
        Change::DeleteNamespace => cluster.delete(&ObjectKey::Namespace("web".into())),
        Change::Account(annotated) => cluster.apply(
            ServiceAccount {
                namespace: "web".into(),
                name: "default".into(),
                role: annotated.map(role),
            }
            .into(),
        ),
        Change::DeleteAccount => {
            cluster.delete(&ObjectKey::ServiceAccount("web".into(), "default".into()));
        }
        Change::Sts(true) => issuer.behave(Duration::ZERO, Ok(HOUR)),
        Change::Sts(false) => {
            issuer.behave(
                Duration::ZERO,
                Err(crate::credentials::IssueErrorKind::Network),
            );
        }
        Change::Listen => {}
    }
}

/// Returns the decisions of the policies about the pods of the node.
fn expected(cluster: &Cluster) -> BTreeMap<String, String> {
    let settings = settings();
    let text = |context| match decide(&context, &settings) {
        Outcome::NoRole => "no role".to_owned(),
        Outcome::Granted(identity) => format!("granted {}", identity.role),
        Outcome::Forbidden { reason, .. } => format!("forbidden {reason}"),
        Outcome::Undecided { awaiting } => format!("awaiting {awaiting}"),
    };
    let contexts = cluster.node(NODE);
    contexts
        .into_iter()
        .map(|context| (context.pod.uid.to_string(), text(context)))
        .collect()
}

async fn run(changes: &[Change]) {
    let (cluster, clock) = (Arc::new(Cluster::new()), TestClock::new());
    let issuer = TestIssuer::new(&clock);
    let store = Arc::new(store(&issuer, &clock, PLENTY));
    let signal = Arc::new(Notify::new());
    let _subscription = cluster.subscribe(NODE, Arc::clone(&signal));
    let mut session = Session::new(
        NODE.into(),
        Arc::clone(&cluster),
        Arc::clone(&store),
        Arc::new(settings()),
        Arc::clone(&signal),
    );
    let (to, mut from) = mpsc::channel(1000);
    let mut agent = Agent::default();
    session.send_changes(&to).await.unwrap();
    for change in changes.iter().chain([&Change::Listen]) {
        apply(&cluster, &issuer, change);
        if !matches!(change, Change::Listen) {
            continue;
        }
        let before = expected(&cluster);
        // A missing wake-up would leave the agent without a change.
        while tokio::time::timeout(Duration::from_millis(10), signal.notified())
            .await
            .is_ok()
        {
            session.send_changes(&to).await.unwrap();
        }
        while let Ok(message) = from.try_recv() {
            agent.receive(message.unwrap().update.unwrap());
            // No more than the policies grant, after any prefix of the messages.
            for (uid, role) in agent
                .grants
                .keys()
                .filter_map(|uid| Some((uid, agent.role_of(uid)?)))
            {
                assert_eq!(agent.pods[uid], format!("granted {BASE}{role}"));
            }
        }
        assert!(agent.synced);
        assert_eq!(agent.pods, before);
    }
    // Once STS issues credentials, every pod with a granted role has them.
    issuer.behave(Duration::ZERO, Ok(HOUR));
    tokio::time::sleep(Duration::from_secs(60)).await;
    session.send_changes(&to).await.unwrap();
    while let Ok(message) = from.try_recv() {
        agent.receive(message.unwrap().update.unwrap());
    }
    for (uid, outcome) in expected(&cluster) {
        let role = outcome
            .strip_prefix("granted ")
            .and_then(|arn| arn.strip_prefix(BASE));
        assert_eq!(
            agent.role_of(&uid).map(String::as_str),
            role,
            "{uid}: {outcome}"
        );
    }
    // Nothing is held for a node without a stream.
    drop(session);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(store.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn an_agent_has_exactly_what_the_policies_grant(
        changes in prop::collection::vec(change(), 0..40),
    ) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(run(&changes));
    }
}

/// In one wake-up, the last pod with a role is deleted and another one is granted the role: the
/// agent has dropped the credentials by then, and must receive them again.
#[tokio::test(start_paused = true)]
async fn credentials_are_sent_again_when_a_role_moves_to_another_pod() {
    let pod = |number| Change::Pod {
        number,
        on_node: true,
        role: Some(1),
    };
    let changes = [
        pod(0),
        Change::Namespace(Some(1)),
        Change::Listen,
        pod(1),
        Change::DeletePod(0),
        Change::Listen,
    ];
    run(&changes).await;
}

#[test]
fn invalid_node_names_are_rejected() {
    for name in ["node-1", "ip-10-0-0-1.eu-west-1.compute.internal", "1"] {
        assert_eq!(name.parse::<NodeName>().unwrap().as_str(), name);
    }
    let long = "a".repeat(254);
    for name in ["", "Node", "-a", "a-", "a/b", "a b", "ü", long.as_str()] {
        assert!(name.parse::<NodeName>().is_err(), "{name}");
    }
}
