//! The view compared with the streams: any sequence of updates, across any number of streams.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use kiam_common::credentials::SessionCredentials;
use kiam_common::pod_uid::PodUid;
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

fn uid(pod: u8) -> PodUid {
    PodUid::from(format!("uid-{pod}").as_str())
}

/// Returns credentials whose key names their role.
fn credentials(of: u8, serial: usize) -> SessionCredentials {
    SessionCredentials {
        access_key_id: format!("ASIA{serial}OF{of}"),
        secret_access_key: "secret".to_owned().into(),
        session_token: "token".to_owned().into(),
        expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000),
        issued: SystemTime::UNIX_EPOCH,
    }
}

fn granted(role_of: u8, identity: u64) -> Outcome<GrantedRole> {
    Outcome::Granted(GrantedRole {
        role: role(role_of),
        identity,
    })
}

fn forbidden() -> Outcome<GrantedRole> {
    Outcome::Forbidden {
        role: "r".into(),
        reason: "no".into(),
    }
}

fn undecided() -> Outcome<GrantedRole> {
    Outcome::Undecided {
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
fn a_new_stream_takes_nothing_away_until_it_is_synced() {
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

    // Another server: other identities, no credentials yet; pod 2 is revoked, 3 undecided, 4
    // missing, 5 new.
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

    // Synced: pods that are missing in the stream are removed. Pod 1 keeps its credentials: its
    // role is the same, and the server has none to send.
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
    // An identity without pods is forgotten.
    feed(&mut projection, [Update::Applied(facts(1), granted(1, 7))]);
    assert_eq!(key_of(&view.load(), 1), None);
    feed(&mut projection, [issued(7, 1, 101)]);
    // Publishing addresses does not change that.
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
fn invalid_updates_are_rejected_and_grant_nothing() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let refused = projection.apply(issued(7, 1, 1)).unwrap_err();
    assert_eq!(refused.reason(), "unknown_identity");
    feed(
        &mut projection,
        [Update::Applied(facts(1), granted(1, 7)), issued(7, 1, 1)],
    );
    // The same identity with another role.
    let update = Update::Applied(facts(2), granted(2, 7));
    let refused = projection.apply(update).unwrap_err();
    assert_eq!(refused.reason(), "another_role");
    // Credentials with a line break; the earlier ones stay.
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
fn the_number_of_pods_is_limited() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let many = |n: usize| PodFacts {
        uid: PodUid::from(n.to_string().as_str()),
        ..facts(0)
    };
    for n in 0..10_000 {
        projection
            .apply(Update::Applied(many(n), Outcome::NoRole))
            .unwrap();
    }
    let update = Update::Applied(many(10_000), Outcome::NoRole);
    let refused = projection.apply(update).unwrap_err();
    assert_eq!(refused.reason(), "too_many_pods");
    projection.publish();
    assert_eq!(view.load().pods().len(), 10_000);
}

#[test]
fn an_address_identifies_one_pod_or_none() {
    let (mut projection, view) = Projection::new();
    let with = |pod, addresses: &[&str], host_network| {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let facts = PodFacts {
            addresses,
            host_network,
            ..facts(pod)
        };
        Update::Applied(facts, Outcome::NoRole)
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
        // The node's own address identifies no pod, even with pods in the node's network.
        ("10.9.9.9", Ok(None)),
    ] {
        assert_eq!(found(address), expected, "{address}");
    }
    // Another pod gets the address before this one is removed.
    feed(&mut projection, [with(2, &["10.0.0.1"], false)]);
    let claimed = found("10.0.0.1").unwrap_err().to_string();
    assert!(claimed.contains("10.0.0.1"), "{claimed}");
    assert_eq!(found("fd00::1"), whose(1));
    feed(&mut projection, [Update::Removed(uid(1))]);
    assert_eq!(found("10.0.0.1"), whose(2));
}

#[test]
fn a_static_hash_identifies_one_pod_or_none() {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let of_hash = |pod| PodFacts {
        static_hash: Some("abc".into()),
        ..facts(pod)
    };
    feed(
        &mut projection,
        [Update::Applied(of_hash(1), Outcome::NoRole)],
    );
    let found = |view: &View| {
        view.load()
            .by_static_hash("abc")
            .map(|pod| pod.facts.uid.clone())
    };
    assert_eq!(found(&view), Some(uid(1)));
    feed(
        &mut projection,
        [Update::Applied(of_hash(2), Outcome::NoRole)],
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
        [Update::Applied(facts(1), Outcome::NoRole)],
    );
    // Published after the subscription and before the wait.
    assert!(changes.next().await);
    assert!(view.load().by_uid("uid-1").is_some());
    let waiting = tokio::spawn(async move { changes.next().await });
    tokio::task::yield_now().await;
    drop(projection);
    assert!(!waiting.await.unwrap(), "the writer is gone");
}

/// A step of a history.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    Update(Update),
}

/// Generates outcomes; identity n always has role n % 3, since no server sends it with two roles.
fn outcome() -> impl Strategy<Value = Outcome<GrantedRole>> {
    prop_oneof![
        4 => (0_u64..6).prop_map(|id| granted(u8::try_from(id % 3).unwrap(), id)),
        1 => Just(Outcome::NoRole),
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
        2 => Just(Step::Update(Update::Synced)),
        10 => (0_u8..5, outcome())
            .prop_map(|(pod, sent)| Step::Update(Update::Applied(facts(pod), sent))),
        2 => (0_u8..5).prop_map(|pod| Step::Update(Update::Removed(uid(pod)))),
        8 => (0_u64..6, 0_usize..1000).prop_map(|(identity, serial)| {
            Step::Update(issued(identity, u8::try_from(identity % 3).unwrap(), serial))
        }),
        2 => (0_u64..6, any::<bool>()).prop_map(move |(identity, permanent)| {
            let failure = failure(permanent);
            Step::Update(Update::Failed { identity, failure })
        }),
    ]
}

/// Outcomes in the current stream, by pod.
type Sent = BTreeMap<PodUid, Outcome<GrantedRole>>;

/// Reads a stream in the plainest way: the last outcome of each pod, and the last credentials of
/// each identity while it has pods.
fn read(stream: &[Update]) -> (Sent, BTreeMap<u64, String>) {
    let (mut sent_by_pod, mut keys) = (Sent::new(), BTreeMap::new());
    for update in stream {
        match update {
            Update::Applied(facts, sent) => {
                sent_by_pod.insert(facts.uid.clone(), sent.clone());
            }
            Update::Removed(uid) => {
                sent_by_pod.remove(uid);
            }
            Update::Issued {
                identity,
                credentials,
            } => {
                if sent_by_pod.values().any(|sent| is_of(sent, *identity)) {
                    keys.insert(*identity, credentials.access_key_id.clone());
                }
            }
            Update::Failed { .. } | Update::Synced => {}
        }
        keys.retain(|identity, _| sent_by_pod.values().any(|sent| is_of(sent, *identity)));
    }
    (sent_by_pod, keys)
}

fn is_of(sent: &Outcome<GrantedRole>, of: u64) -> bool {
    matches!(sent, Outcome::Granted(GrantedRole { identity, .. }) if *identity == of)
}

fn run(projection: &mut Projection, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Begin => projection.begin(),
            // Histories may contain updates that are rejected.
            Step::Update(update) => drop(projection.apply(update.clone())),
        }
    }
    projection.publish();
}

fn same_kind(shown: &Outcome<Grant>, sent: &Outcome<GrantedRole>) -> bool {
    match (shown, sent) {
        (Outcome::NoRole, Outcome::NoRole)
        | (Outcome::Forbidden { .. }, Outcome::Forbidden { .. })
        | (Outcome::Undecided { .. }, Outcome::Undecided { .. }) => true,
        (Outcome::Granted(grant), Outcome::Granted(GrantedRole { role, .. })) => {
            grant.role == *role
        }
        _ => false,
    }
}

proptest! {
    /// Within one stream, the view is the final state of the stream.
    #[test]
    fn the_view_of_one_stream_is_its_final_state(
        updates in prop::collection::vec(step(), 0..60)
    ) {
        let updates: Vec<Update> = updates
            .into_iter()
            .filter_map(|step| match step {
                Step::Update(update) => Some(update),
                Step::Begin => None,
            })
            .collect();
        let (mut projection, view) = Projection::new();
        projection.begin();
        let steps: Vec<Step> = updates.iter().cloned().map(Step::Update).collect();
        run(&mut projection, &steps);
        let (sent_by_pod, keys) = read(&updates);
        let snapshot = view.load();
        let seen: BTreeSet<_> = snapshot.pods().map(|pod| pod.facts.uid.clone()).collect();
        prop_assert_eq!(seen, sent_by_pod.keys().cloned().collect());
        for pod in snapshot.pods() {
            let sent = &sent_by_pod[&pod.facts.uid];
            prop_assert!(same_kind(&pod.outcome, sent), "{:?} {:?}", pod, sent);
            if let (Outcome::Granted(grant), Outcome::Granted(GrantedRole { identity, .. })) =
                (&pod.outcome, sent)
            {
                let key = grant.issued.as_ref().map(|issued| issued.access_key_id());
                prop_assert_eq!(key, keys.get(identity).map(String::as_str));
            }
        }
    }

    /// Across streams: once synced, pods and outcomes are those of the stream. Credentials are
    /// those of the stream, or older ones of the same pod and role.
    #[test]
    fn the_view_across_streams_is_never_more_than_was_granted(
        steps in prop::collection::vec(step(), 0..120)
    ) {
        let (mut projection, view) = Projection::new();
        let mut stream: Vec<Update> = Vec::new();
        let mut synced = false;
        // All keys that each pod was ever shown, in any stream.
        let mut shown: BTreeMap<PodUid, BTreeSet<String>> = BTreeMap::new();
        for step in &steps {
            run(&mut projection, std::slice::from_ref(step));
            match step {
                Step::Begin => {
                    stream.clear();
                    synced = false;
                }
                Step::Update(update) => {
                    synced |= *update == Update::Synced;
                    stream.push(update.clone());
                }
            }
            let (sent_by_pod, keys) = read(&stream);
            let snapshot = view.load();
            for (uid, sent) in &sent_by_pod {
                let pod = snapshot.by_uid(uid.as_str());
                let pod = pod.expect("a pod that the stream named is there");
                let held = !synced && matches!(sent, Outcome::Undecided { .. });
                prop_assert!(held || same_kind(&pod.outcome, sent), "{:?} {:?}", pod, sent);
                if let (Outcome::Granted(grant), Outcome::Granted(GrantedRole { identity, .. })) =
                    (&pod.outcome, sent)
                    && let Some(own) = keys.get(identity)
                {
                    let issued = grant.issued.as_ref().expect("the stream's own credentials");
                    prop_assert_eq!(issued.access_key_id(), own);
                    shown.entry(uid.clone()).or_default().insert(own.clone());
                }
            }
            if synced {
                prop_assert_eq!(snapshot.pods().len(), sent_by_pod.len());
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
