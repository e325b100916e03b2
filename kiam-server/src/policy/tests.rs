//! Cases of kiam's own tests (kiam's `policy_test`), cases that it gets wrong, and properties.

use std::sync::Arc;

use kiam_common::role::BaseArn;
use proptest::prelude::*;

use super::*;
use crate::cluster::object::{Annotations, Namespace, Pod, ServiceAccount};
use crate::permitted::{Anchoring, Permitted};
use crate::testing::{HOUR, pod};

const BASE: &str = "arn:aws:iam::123456789012:role/";

fn settings(base: &str) -> Settings {
    Settings {
        base_arn: Some(BaseArn::parse(base).unwrap()),
        session: SessionSettings {
            name: "kiam".to_owned(),
            duration: HOUR,
            longest: 2 * HOUR,
            ..SessionSettings::default()
        },
    }
}

fn context(role: Option<&str>, account_role: Option<&str>, permitted: Option<&str>) -> PodContext {
    let mut pod = pod("uid-1", "web", "frontend", "node-1");
    pod.annotations = Annotations {
        role: role.map(Box::from),
        ..Annotations::default()
    }
    .boxed();
    let account = ServiceAccount {
        namespace: "web".into(),
        name: "default".into(),
        role: account_role.map(Box::from),
    };
    let namespace = Namespace {
        name: "web".into(),
        permitted: Permitted::compile(permitted, Anchoring::Whole),
    };
    PodContext {
        pod: Arc::new(pod),
        namespace: Some(Arc::new(namespace)),
        service_account: Some(Arc::new(account)),
    }
}

/// Returns the ARN of a granted role, or the reason of the refusal.
fn verdict(context: &PodContext, base: &str) -> Result<String, String> {
    match decide(context, &settings(base)) {
        Outcome::Granted(identity) => Ok(identity.role.to_string()),
        Outcome::Forbidden { reason, .. } => Err(reason.into()),
        Outcome::NoRole => Err("no role".to_owned()),
        Outcome::Undecided { awaiting } => Err(format!("awaiting {awaiting}")),
    }
}

#[test]
fn permitted_roles_are_granted() {
    for (base, role, permitted) in [
        (BASE, "red_role", ".*red.*"),
        (BASE, "/red_role", ".*red.*"),
        (BASE, "red_role", "arn:aws:iam::123456789012:role/red_role"),
        (BASE, "red_role", ".*role"),
        (
            BASE,
            "team/red_role",
            "arn:aws:iam::123456789012:role/team/.*",
        ),
        (
            "arn:aws:iam::123456789012:role/team/",
            "red_role",
            ".*:role/team/red_role",
        ),
        (
            BASE,
            "arn:aws-cn:iam::210987654321:role/x",
            "arn:aws-cn:iam::210987654321:role/x",
        ),
        (BASE, "b", ".*/a|.*/b"),
    ] {
        let granted = verdict(&context(Some(role), None, Some(permitted)), base);
        assert!(granted.is_ok(), "{role} by {permitted}: {granted:?}");
    }
}

#[test]
fn refusals_name_the_annotation_to_change() {
    let long = "x".repeat(3000);
    for (role, permitted, parts) in [
        ("orange", None, [PERMITTED, "no annotation", "orange"]),
        ("orange", Some(""), [PERMITTED, "no annotation", "orange"]),
        (
            "orange",
            Some("^red.*$"),
            [PERMITTED, "does not permit", "^red.*$"],
        ),
        // Expressions that match only a part of the ARN.
        (
            "orange",
            Some("o"),
            [PERMITTED, "does not match the whole ARN", "\"o\""],
        ),
        (
            "orange",
            Some("orange"),
            [PERMITTED, "does not match the whole ARN", "\"orange\""],
        ),
        // kiam compiles ^a|b$ here, which permits every role that starts with a.
        (
            "a-admin",
            Some(".*/a|.*/b"),
            [PERMITTED, "does not permit", "a-admin"],
        ),
        (
            "a",
            Some("("),
            [PERMITTED, "not a valid expression", "unclosed group"],
        ),
        (
            "a",
            Some("x)|(.*"),
            [PERMITTED, "not a valid expression", "unopened group"],
        ),
        (
            "a",
            Some("(a{1000}){1000}"),
            [PERMITTED, "not a valid expression", "size limit"],
        ),
        ("a", Some(long.as_str()), [PERMITTED, "does not match", "…"]),
        (
            "arn:foo",
            Some(".*"),
            [ROLE, "pod web/frontend", "partition"],
        ),
        ("", Some(".*"), [ROLE, "pod web/frontend", "empty"]),
        (
            "a\nb",
            Some(".*"),
            [ROLE, "\"a\\nb\"", "'\\n' at position 2"],
        ),
        (long.as_str(), Some(".*"), [ROLE, "3000 bytes", "x…"]),
    ] {
        let reason = verdict(&context(Some(role), None, permitted), BASE).unwrap_err();
        assert!(
            parts.iter().all(|part| reason.contains(part)),
            "{role:?}: {reason}"
        );
        assert!(reason.chars().all(|c| !c.is_control()), "{reason:?}");
        assert!(reason.len() < 800, "{} bytes", reason.len());
    }
}

#[test]
fn the_annotation_of_the_pod_precedes_that_of_its_service_account() {
    let permitted = Some(".*");
    for (pod, account, expected) in [
        (Some("a"), Some("b"), Ok(format!("{BASE}a"))),
        (None, Some("b"), Ok(format!("{BASE}b"))),
        (None, None, Err("no role".to_owned())),
    ] {
        assert_eq!(verdict(&context(pod, account, permitted), BASE), expected);
    }
    let reason = verdict(&context(None, Some("arn:x"), permitted), BASE).unwrap_err();
    assert!(reason.contains("service account web/default"), "{reason}");
}

#[test]
fn an_unknown_namespace_leaves_the_decision_open() {
    let mut context = context(Some("a"), None, Some(".*"));
    context.namespace = None;
    assert_eq!(
        verdict(&context, BASE),
        Err("awaiting namespace web".to_owned())
    );
}

fn granted(context: &PodContext, settings: &Settings) -> Identity {
    match decide(context, settings) {
        Outcome::Granted(identity) => Identity::clone(&identity),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_configured_tags_distinguish_sessions() {
    let first = context(Some("a"), None, Some(".*"));
    let mut second = first.clone();
    second.pod = Arc::new(Pod {
        uid: "uid-2".into(),
        name: "other".into(),
        node: Some("node-2".into()),
        ..Pod::clone(&first.pod)
    });
    for (tags, shared) in [
        (vec![], true),
        (
            vec![SessionTag::Namespace, SessionTag::ServiceAccount],
            true,
        ),
        (vec![SessionTag::ClusterName], true),
        (vec![SessionTag::PodName], false),
        (vec![SessionTag::PodUid], false),
        (vec![SessionTag::Namespace, SessionTag::NodeName], false),
    ] {
        let mut settings = settings(BASE);
        settings.session.tags = tags.clone();
        settings.session.cluster = "east".to_owned();
        settings.session.source_identity = true;
        let identity = granted(&first, &settings);
        assert_eq!(identity == granted(&second, &settings), shared, "{tags:?}");
        let keys: Vec<_> = identity.tags.iter().map(|tag| tag.key).collect();
        assert_eq!(keys, tags.iter().map(|tag| tag.key()).collect::<Vec<_>>());
        assert_eq!(identity.source_identity.as_deref(), Some("web.default"));
    }
    assert_eq!(granted(&first, &settings(BASE)).source_identity, None);
}

#[test]
fn a_pod_may_request_a_duration_within_bounds() {
    let with = |text: &str| {
        let mut context = context(Some("a"), None, Some(".*"));
        let mut pod = Pod::clone(&context.pod);
        pod.annotations = Annotations {
            session_duration: Some(text.into()),
            ..pod.annotations.map(|boxed| *boxed).unwrap_or_default()
        }
        .boxed();
        context.pod = Arc::new(pod);
        context
    };
    assert_eq!(granted(&with("15m"), &settings(BASE)).duration, HOUR / 4);
    assert_eq!(granted(&with("2h"), &settings(BASE)).duration, 2 * HOUR);
    for text in ["14m", "2h1s", "", "soon", "-1h", "99999999999999h"] {
        let reason = verdict(&with(text), BASE).unwrap_err();
        assert!(reason.contains(SESSION_DURATION), "{text}: {reason}");
    }
}

#[test]
fn without_anchoring_an_expression_may_match_any_part() {
    let part = Permitted::compile(Some("o"), Anchoring::Part);
    assert_eq!(
        part.verdict("arn:aws:iam::123456789012:role/orange"),
        Verdict::Permitted
    );
    assert!(matches!(part.verdict("x"), Verdict::Other("o")));
}

#[test]
fn session_names_equal_those_of_kiam() {
    let long = "a".repeat(80);
    for (name, expected) in [
        ("kiam", "kiam-kiam".to_owned()),
        ("testing@#&-test%", "kiam-testing@---test-".to_owned()),
        (long.as_str(), format!("kiam-{}", "a".repeat(59))),
        ("é", "kiam--".to_owned()),
    ] {
        assert_eq!(session_name(name), expected);
    }
}

proptest! {
    #[test]
    fn session_names_are_always_valid(name in any::<String>()) {
        let name = session_name(&name);
        prop_assert!((5..=64).contains(&name.len()));
        prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)));
    }

    #[test]
    fn an_expression_permits_only_arns_that_it_matches_as_a_whole(
        first in "[a-z]{1,4}", second in "[a-z]{1,4}", role in "[a-z]{1,6}",
    ) {
        let expression = format!("{BASE}{first}|{BASE}{second}");
        let granted = verdict(&context(Some(&role), None, Some(&expression)), BASE).is_ok();
        prop_assert_eq!(granted, role == first || role == second);
    }

    #[test]
    fn annotations_never_cause_a_panic_or_control_characters(
        role in any::<String>(), permitted in any::<Option<String>>(),
    ) {
        match decide(&context(Some(&role), None, permitted.as_deref()), &settings(BASE)) {
            Outcome::Forbidden { reason, .. } => prop_assert!(!reason.contains(char::is_control)),
            Outcome::Granted(_) => prop_assert!(permitted.is_some_and(|text| !text.is_empty())),
            Outcome::NoRole | Outcome::Undecided { .. } => prop_assert!(false),
        }
    }
}
