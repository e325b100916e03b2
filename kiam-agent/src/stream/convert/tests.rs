//! Well-formed messages are converted; all others are rejected with the reason.

use kiam_common::api::node::v1::watch_response::Update as Wire;
use kiam_common::pod_uid::PodUid;
use proptest::prelude::*;

use super::*;

fn pod(outcome: Option<api::pod_applied::Outcome>) -> api::PodApplied {
    api::PodApplied {
        uid: "6f3c".into(),
        namespace: "default".into(),
        name: "web".into(),
        service_account: "web".into(),
        addresses: vec![
            "10.0.0.1".into(),
            "::ffff:10.0.0.2".into(),
            "fd00::1".into(),
        ],
        host_network: false,
        static_pod_hash: String::new(),
        outcome,
    }
}

fn granted(role_arn: &str) -> Option<api::pod_applied::Outcome> {
    let role_arn = role_arn.to_owned();
    let granted = api::Granted {
        role_arn,
        identity: 7,
    };
    Some(api::pod_applied::Outcome::Granted(granted))
}

fn no_role() -> Option<api::pod_applied::Outcome> {
    Some(api::pod_applied::Outcome::NoRole(api::NoRole {}))
}

fn convert(wire: Wire) -> Result<Update, Unusable> {
    update(api::WatchResponse { update: Some(wire) })
}

fn issued(
    expiration: Option<prost_types::Timestamp>,
    issued: Option<prost_types::Timestamp>,
) -> Wire {
    let mut wire = api::CredentialsIssued::default();
    wire.identity = 7;
    wire.access_key_id = "ASIAEXAMPLE".into();
    wire.secret_access_key = "hunter2".into();
    wire.session_token = "hunter3".into();
    wire.expiration = expiration;
    wire.issued = issued;
    Wire::CredentialsIssued(wire)
}

const fn at(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

#[test]
fn a_pod_is_converted() {
    let arn = "arn:aws:iam::123456789012:role/reader";
    let update = convert(Wire::PodApplied(pod(granted(arn)))).unwrap();
    let Update::Applied(facts, outcome) = update else {
        panic!("{update:?}");
    };
    assert_eq!(facts.uid.as_str(), "6f3c");
    assert_eq!(facts.static_hash, None);
    let addresses: Vec<_> = facts.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let role = RoleArn::parse(arn).unwrap();
    assert_eq!(outcome, Outcome::Granted(GrantedRole { role, identity: 7 }));
}

#[test]
fn an_invalid_pod_is_named_so_that_it_loses_its_grant() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let name = |what| Malformed::Name { what };
    let cases = [
        (pod(None), Malformed::Kind),
        (
            api::PodApplied {
                namespace: String::new(),
                ..pod(no_role())
            },
            name("namespace"),
        ),
        (
            api::PodApplied {
                name: "we\nb".into(),
                ..pod(no_role())
            },
            name("name"),
        ),
        (
            api::PodApplied {
                service_account: long.clone(),
                ..pod(no_role())
            },
            name("service account"),
        ),
        (
            api::PodApplied {
                static_pod_hash: long.clone(),
                ..pod(no_role())
            },
            name("static pod hash"),
        ),
        (
            api::PodApplied {
                addresses: vec!["10.0.0.256".into()],
                ..pod(no_role())
            },
            Malformed::Address,
        ),
        (
            api::PodApplied {
                addresses: vec!["10.0.0.1".into(); MAX_ADDRESSES + 1],
                ..pod(no_role())
            },
            Malformed::Address,
        ),
        (pod(granted("")), Malformed::Role(RoleError::Empty)),
    ];
    for (pod, why) in cases {
        let unusable = convert(Wire::PodApplied(pod)).unwrap_err();
        let about = Some(PodUid::from("6f3c"));
        assert_eq!(unusable, Unusable { why, about });
    }
    for role in ["arn:foo", "reader", "arn:aws:iam::1:role/x"] {
        let unusable = convert(Wire::PodApplied(pod(granted(role)))).unwrap_err();
        assert!(matches!(unusable.why, Malformed::Role(_)), "{role}");
    }
    for uid in ["", "a b", &long] {
        let nameless = api::PodApplied {
            uid: uid.into(),
            ..pod(no_role())
        };
        let unusable = convert(Wire::PodApplied(nameless)).unwrap_err();
        assert_eq!(unusable, name("uid").into());
    }
}

#[test]
fn times_are_checked() {
    assert!(convert(issued(at(1_700_000_000, 5), at(0, 0))).is_ok());
    for (expiration, of_issue, what) in [
        (None, at(0, 0), "expiration"),
        (at(-1, 0), at(0, 0), "expiration"),
        (at(0, -1), at(0, 0), "expiration"),
        (at(0, 1_000_000_000), at(0, 0), "expiration"),
        (at(i64::MAX, 999_999_999), None, "time of issue"),
        (at(0, 0), at(i64::MIN, i32::MIN), "time of issue"),
    ] {
        let unusable = convert(issued(expiration, of_issue)).unwrap_err();
        // A time beyond the range of SystemTime is rejected in whichever field comes first.
        let time = matches!(unusable.why, Malformed::Time { what: w } if w == what || what == "time of issue");
        assert!(time, "{unusable:?}");
        assert_eq!(unusable.about, None);
    }
}

#[test]
fn an_unknown_kind_is_rejected() {
    let unusable = update(api::WatchResponse { update: None }).unwrap_err();
    assert_eq!(unusable, Malformed::Kind.into());
}

#[test]
fn prose_is_one_line_of_limited_length() {
    assert_eq!(&*prose("one\ntwo\r\x1b[31m"), "one two  [31m");
    assert_eq!(&*prose("short"), "short");
    let long = prose(&"é".repeat(MAX_PROSE_BYTES));
    assert!(long.len() <= MAX_PROSE_BYTES + '…'.len_utf8() && long.ends_with('…'));
}

proptest! {
    #[test]
    fn no_text_panics_or_passes_unbounded(
        uid in any::<String>(),
        namespace in any::<String>(),
        role in any::<String>(),
        reason in any::<String>(),
        seconds in any::<i64>(),
        nanos in any::<i32>(),
    ) {
        let forbidden = api::Forbidden { role, reason };
        let outcome = Some(api::pod_applied::Outcome::Forbidden(forbidden));
        let pod = api::PodApplied { uid, namespace, ..pod(outcome) };
        if let Ok(Update::Applied(facts, Outcome::Forbidden { role, reason })) =
            convert(Wire::PodApplied(pod))
        {
            prop_assert!(facts.namespace.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!role.contains('\n') && !reason.contains('\n'));
        }
        drop(convert(issued(at(seconds, nanos), at(seconds, nanos))));
    }
}
