//! The view against what the streams said: any sequence of updates, over any breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;
use proptest::prelude::*;

use super::*;

fn role(n: u8) -> RoleArn {
    RoleArn::parse(&format!("arn:aws:iam::123456789012:role/r{n}")).unwrap()
}

fn facts(pod: u8) -> PodFacts {
    PodFacts {
        uid: uid(pod),
        namespace: "default".into(),
        name: format!("pod-{pod}").into(),
        service_account: "default".into(),
        addresses: Box::new([]),
        host_network: false,
        static_hash: None,
    }
}

fn uid(pod: u8) -> Uid {
    Uid::from(format!("uid-{pod}").as_str())
}

/// Credentials that tell which role they are of.
fn credentials(of: u8, serial: usize) -> SessionCredentials {
    SessionCredentials {
        access_key_id: format!("ASIA{serial}OF{of}"),
        secret_access_key: "secret".to_owned().into(),
        session_token: "token".to_owned().into(),
        expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000),
        issued: SystemTime::UNIX_EPOCH,
    }
}

fn granted(role_of: u8, identity: u64) -> Decision {
    Decision::Granted {
        role: role(role_of),
        identity,
    }
}

fn forbidden() -> Decision {
    Decision::Forbidden {
        role: "r".into(),
        reason: "no".into(),
    }
}

fn undecided() -> Decision {
    Decision::Undecided {
        awaiting: "namespace".into(),
    }
}

fn key_of(snapshot: &Snapshot, pod: u8) -> Option<String> {
    match &snapshot.by_uid(uid(pod).as_str())?.outcome {
        Outcome::Granted(grant) => Some(grant.issued.as_ref()?.access_key_id().to_owned()),
        _ => None,
    }
}

fn feed(projection: &mut Projection, updates: impl IntoIterator<Item = Update>) {
    for update in updates {
        projection.apply(update).unwrap();
    }
    projection.publish();
}

fn issued(identity: u64, of: u8, serial: usize) -> Update {
    Update::Issued {
        identity,
        credentials: credentials(of, serial),
    }
}

#[test]
fn a_break_loses_nothing_until_the_next_stream_is_synced() {
    let (mut projection, view) = Projection::new();
    assert!(!view.load().complete());
    projection.begin();
    feed(
        &mut projection,
        [
            Update::Applied(facts(1), granted(1, 7)),
            Update::Applied(facts(2), granted(2, 8)),
            Update::Applied(facts(3), granted(3, 9)),
            Update::Applied(facts(4), granted(4, 10)),
            issued(7, 1, 100),
            issued(8, 2, 200),
            issued(9, 3, 300),
            issued(10, 4, 400),
            Update::Synced,
        ],
    );
    assert!(view.load().complete());
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA100OF1");

    // Another server: other numbers, no credentials yet; 2 is revoked, 3 is undecided there, 4 is
    // gone, 5 is new.
    projection.begin();
    projection.publish();
    assert_eq!(key_of(&view.load(), 4).unwrap(), "ASIA400OF4");
    feed(
        &mut projection,
        [
            Update::Applied(facts(1), granted(1, 1)),
            Update::Applied(facts(2), forbidden()),
            Update::Applied(facts(3), undecided()),
            Update::Applied(facts(5), granted(5, 2)),
            issued(2, 5, 500),
        ],
    );
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA100OF1");
    assert_eq!(key_of(&view.load(), 2), None);
    assert_eq!(key_of(&view.load(), 3).unwrap(), "ASIA300OF3");
    feed(&mut projection, [Update::Applied(facts(3), granted(3, 3))]);
    assert_eq!(key_of(&view.load(), 3).unwrap(), "ASIA300OF3");
    feed(&mut projection, [Update::Applied(facts(3), undecided())]);
    assert_eq!(key_of(&view.load(), 4).unwrap(), "ASIA400OF4");
    assert_eq!(key_of(&view.load(), 5).unwrap(), "ASIA500OF5");

    // Synced: what was not named is gone. Pod 1 keeps what it has: its role is the same, and the
    // server cannot reach STS, say.
    let failure = Failure {
        error: "no route to STS".into(),
        permanent: false,
    };
    feed(
        &mut projection,
        [
            Update::Failed {
                identity: 1,
                failure,
            },
            Update::Synced,
        ],
    );
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA100OF1");
    assert_eq!(key_of(&view.load(), 3), None);
    assert!(view.load().by_uid("uid-4").is_none());
    feed(&mut projection, [issued(1, 1, 101)]);
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA101OF1");
}

#[test]
fn another_role_or_identity_never_keeps_the_credentials() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let had = [
        Update::Applied(facts(1), granted(1, 7)),
        issued(7, 1, 100),
        Update::Synced,
    ];
    feed(&mut projection, had);
    // The same role with another session name is another identity.
    feed(&mut projection, [Update::Applied(facts(1), granted(1, 8))]);
    assert_eq!(key_of(&view.load(), 1), None);
    // The identity nobody was granted any more is forgotten.
    feed(&mut projection, [Update::Applied(facts(1), granted(1, 7))]);
    assert_eq!(key_of(&view.load(), 1), None);
    feed(&mut projection, [issued(7, 1, 101)]);
    // Published addresses change nothing about that.
    let published = PodFacts {
        addresses: Box::new(["10.0.0.1".parse().unwrap()]),
        ..facts(1)
    };
    feed(&mut projection, [Update::Applied(published, granted(1, 7))]);
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA101OF1");
    // In the next stream the pod has another role.
    projection.begin();
    feed(&mut projection, [Update::Applied(facts(1), granted(2, 7))]);
    assert_eq!(key_of(&view.load(), 1), None);
}

#[test]
fn what_makes_no_sense_is_refused_and_grants_nothing() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let refused = projection.apply(issued(7, 1, 1)).unwrap_err();
    assert_eq!(refused.reason(), "unknown_identity");
    feed(
        &mut projection,
        [Update::Applied(facts(1), granted(1, 7)), issued(7, 1, 1)],
    );
    // The same identity for another role.
    let update = Update::Applied(facts(2), granted(2, 7));
    let refused = projection.apply(update).unwrap_err();
    assert_eq!(refused.reason(), "another_role");
    // Credentials with a line break in them; what came before stays.
    let mut torn = credentials(1, 2);
    torn.access_key_id.push('\n');
    let update = Update::Issued {
        identity: 7,
        credentials: torn,
    };
    let refused = projection.apply(update).unwrap_err();
    assert_eq!(refused.reason(), "credentials");
    projection.publish();
    assert_eq!(key_of(&view.load(), 1).unwrap(), "ASIA1OF1");
    assert_eq!(key_of(&view.load(), 2), None);
    assert_eq!(view.load().pods().len(), 2);
}

#[test]
fn there_is_an_end_to_the_pods_of_a_node() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let many = |n: usize| PodFacts {
        uid: Uid::from(n.to_string().as_str()),
        ..facts(0)
    };
    for n in 0..10_000 {
        projection
            .apply(Update::Applied(many(n), Decision::NoRole))
            .unwrap();
    }
    let update = Update::Applied(many(10_000), Decision::NoRole);
    let refused = projection.apply(update).unwrap_err();
    assert_eq!(refused.reason(), "too_many_pods");
    projection.publish();
    assert_eq!(view.load().pods().len(), 10_000);
}

#[test]
fn an_address_names_one_pod_or_none() {
    let (mut projection, view) = Projection::new();
    let with = |pod, addresses: &[&str], host_network| {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let facts = PodFacts {
            addresses,
            host_network,
            ..facts(pod)
        };
        Update::Applied(facts, Decision::NoRole)
    };
    let found = |address: &str| {
        let snapshot = view.load();
        let pod = snapshot.by_address(address.parse().unwrap());
        pod.map(|pod| pod.map(|pod| pod.facts.uid.to_string()))
    };
    let whose = |pod| Ok(Some(uid(pod).to_string()));
    projection.begin();
    feed(
        &mut projection,
        [
            with(1, &["10.0.0.1", "fd00::1", "10.0.0.1"], false),
            with(2, &[], false),
            with(3, &["10.9.9.9"], true),
        ],
    );
    for (address, expected) in [
        ("10.0.0.1", whose(1)),
        ("fd00::1", whose(1)),
        ("10.0.0.2", Ok(None)),
        // The node's own address is no pod's, whichever pods are in its network.
        ("10.9.9.9", Ok(None)),
    ] {
        assert_eq!(found(address), expected, "{address}");
    }
    // Another pod has the address already, and this one is not gone yet.
    feed(&mut projection, [with(2, &["10.0.0.1"], false)]);
    let claimed = found("10.0.0.1").unwrap_err().to_string();
    assert!(claimed.contains("10.0.0.1"), "{claimed}");
    assert_eq!(found("fd00::1"), whose(1));
    feed(&mut projection, [Update::Removed(uid(1))]);
    assert_eq!(found("10.0.0.1"), whose(2));
}

#[test]
fn a_static_hash_names_one_pod_or_none() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let of_hash = |pod| PodFacts {
        static_hash: Some("abc".into()),
        ..facts(pod)
    };
    feed(
        &mut projection,
        [Update::Applied(of_hash(1), Decision::NoRole)],
    );
    let found = |view: &View| {
        view.load()
            .by_static_hash("abc")
            .map(|pod| pod.facts.uid.clone())
    };
    assert_eq!(found(&view), Some(uid(1)));
    feed(
        &mut projection,
        [Update::Applied(of_hash(2), Decision::NoRole)],
    );
    assert_eq!(found(&view), None);
    feed(&mut projection, [Update::Removed(uid(1))]);
    assert_eq!(found(&view), Some(uid(2)));
}

#[tokio::test]
async fn readers_are_woken_and_no_change_is_missed() {
    let (mut projection, view) = Projection::new();
    let mut changes = view.changes();
    projection.begin();
    feed(
        &mut projection,
        [Update::Applied(facts(1), Decision::NoRole)],
    );
    // Published before the wait began, after the subscription: not missed.
    assert!(changes.next().await);
    assert!(view.load().by_uid("uid-1").is_some());
    let waiting = tokio::spawn(async move { changes.next().await });
    tokio::task::yield_now().await;
    drop(projection);
    assert!(!waiting.await.unwrap(), "the writer is gone");
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    Say(Update),
}

/// Identity n is of role n % 3 always, as no server names one for two roles.
fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        4 => (0_u64..6).prop_map(|id| granted(u8::try_from(id % 3).unwrap(), id)),
        1 => Just(Decision::NoRole),
        1 => Just(forbidden()),
        1 => Just(undecided()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let failure = |permanent| Failure {
        error: "denied".into(),
        permanent,
    };
    prop_oneof![
        1 => Just(Step::Begin),
        2 => Just(Step::Say(Update::Synced)),
        10 => (0_u8..5, decision())
            .prop_map(|(pod, decision)| Step::Say(Update::Applied(facts(pod), decision))),
        2 => (0_u8..5).prop_map(|pod| Step::Say(Update::Removed(uid(pod)))),
        8 => (0_u64..6, 0_usize..1000).prop_map(|(identity, serial)| {
            Step::Say(issued(identity, u8::try_from(identity % 3).unwrap(), serial))
        }),
        2 => (0_u64..6, any::<bool>()).prop_map(move |(identity, permanent)| {
            let failure = failure(permanent);
            Step::Say(Update::Failed { identity, failure })
        }),
    ]
}

/// What the current stream has said of each pod, and nothing else.
type Said = BTreeMap<Uid, Decision>;

/// The plain reading of one stream: the last word on each pod, and each identity's last
/// credentials since a pod was first granted it and as long as one is.
fn read(stream: &[Update]) -> (Said, BTreeMap<u64, String>) {
    let (mut said, mut keys) = (Said::new(), BTreeMap::new());
    for update in stream {
        match update {
            Update::Applied(facts, decision) => {
                said.insert(facts.uid.clone(), decision.clone());
            }
            Update::Removed(uid) => {
                said.remove(uid);
            }
            Update::Issued {
                identity,
                credentials,
            } => {
                if said.values().any(|decision| is_of(decision, *identity)) {
                    keys.insert(*identity, credentials.access_key_id.clone());
                }
            }
            Update::Failed { .. } | Update::Synced => {}
        }
        keys.retain(|identity, _| said.values().any(|decision| is_of(decision, *identity)));
    }
    (said, keys)
}

fn is_of(decision: &Decision, of: u64) -> bool {
    matches!(decision, Decision::Granted { identity, .. } if *identity == of)
}

fn run(projection: &mut Projection, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Begin => projection.begin(),
            // What is refused is part of the histories too.
            Step::Say(update) => drop(projection.apply(update.clone())),
        }
    }
    projection.publish();
}

fn same_kind(outcome: &Outcome, decision: &Decision) -> bool {
    match (outcome, decision) {
        (Outcome::NoRole, Decision::NoRole)
        | (Outcome::Forbidden { .. }, Decision::Forbidden { .. })
        | (Outcome::Undecided { .. }, Decision::Undecided { .. }) => true,
        (Outcome::Granted(grant), Decision::Granted { role, .. }) => grant.role == *role,
        _ => false,
    }
}

proptest! {
    /// Without a break, the view is what the last words say.
    #[test]
    fn one_stream_s_view_is_the_fold_of_its_final_state(
        updates in prop::collection::vec(step(), 0..60)
    ) {
        let updates: Vec<Update> = updates
            .into_iter()
            .filter_map(|step| match step {
                Step::Say(update) => Some(update),
                Step::Begin => None,
            })
            .collect();
        let (mut projection, view) = Projection::new();
        projection.begin();
        let steps: Vec<Step> = updates.iter().cloned().map(Step::Say).collect();
        run(&mut projection, &steps);
        let (said, keys) = read(&updates);
        let snapshot = view.load();
        let seen: BTreeSet<_> = snapshot.pods().map(|pod| pod.facts.uid.clone()).collect();
        prop_assert_eq!(seen, said.keys().cloned().collect());
        for pod in snapshot.pods() {
            let decision = &said[&pod.facts.uid];
            prop_assert!(same_kind(&pod.outcome, decision), "{:?} {:?}", pod, decision);
            if let (Outcome::Granted(grant), Decision::Granted { identity, .. }) =
                (&pod.outcome, decision)
            {
                let key = grant.issued.as_ref().map(|issued| issued.access_key_id());
                prop_assert_eq!(key, keys.get(identity).map(String::as_str));
            }
        }
    }

    /// Over breaks: once synced, the pods and decisions are the stream's; credentials are
    /// the stream's where it has any, else older ones of the very same pod and role.
    #[test]
    fn over_breaks_the_view_is_never_more_than_was_granted(
        steps in prop::collection::vec(step(), 0..120)
    ) {
        let (mut projection, view) = Projection::new();
        let mut stream: Vec<Update> = Vec::new();
        let mut synced = false;
        // Every key that each pod was ever shown, in any stream.
        let mut shown: BTreeMap<Uid, BTreeSet<String>> = BTreeMap::new();
        for step in &steps {
            run(&mut projection, std::slice::from_ref(step));
            match step {
                Step::Begin => {
                    stream.clear();
                    synced = false;
                }
                Step::Say(update) => {
                    synced |= *update == Update::Synced;
                    stream.push(update.clone());
                }
            }
            let (said, keys) = read(&stream);
            let snapshot = view.load();
            for (uid, decision) in &said {
                let pod = snapshot.by_uid(uid.as_str());
                let pod = pod.expect("a pod that the stream named is there");
                let held = !synced && matches!(decision, Decision::Undecided { .. });
                prop_assert!(held || same_kind(&pod.outcome, decision), "{:?} {:?}", pod, decision);
                if let (Outcome::Granted(grant), Decision::Granted { identity, .. }) =
                    (&pod.outcome, decision)
                    && let Some(own) = keys.get(identity)
                {
                    let issued = grant.issued.as_ref().expect("the stream's own credentials");
                    prop_assert_eq!(issued.access_key_id(), own);
                    shown.entry(uid.clone()).or_default().insert(own.clone());
                }
            }
            if synced {
                prop_assert_eq!(snapshot.pods().len(), said.len());
            }
            for pod in snapshot.pods() {
                if let Outcome::Granted(grant) = &pod.outcome
                    && let Some(issued) = &grant.issued
                {
                    let role = grant.role.name().trim_start_matches('r');
                    let key = issued.access_key_id();
                    prop_assert!(key.ends_with(&format!("OF{role}")), "{} for {}", key, grant.role);
                    let before = shown.get(&pod.facts.uid);
                    prop_assert!(before.is_some_and(|keys| keys.contains(key)), "{} for {}", key, pod);
                }
            }
        }
    }
}
