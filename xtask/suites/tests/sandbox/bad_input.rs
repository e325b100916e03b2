//! Bad input, one at a time: a message names the object at fault, nothing crashes, and
//! nothing else is affected. The input is the cluster's objects, and answers of STS.

use anyhow::ensure;
use serde_json::json;
use testbed::fixture::{Fixture, ask, assert_denied_eventually, assert_logs, eventually};

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn malformed_roles_are_named() {
    let fixture = Fixture::start();
    let long = "r".repeat(3000);
    for (name, role, parts) in [
        ("no-arn", "arn:foo", ["\"arn:foo\"", "not a role ARN"]),
        ("long", &long, ["rrr…", "bytes long"]),
        (
            "control",
            "a\u{7}b\u{1b}[31m\r\nX-Injected: 1",
            [r"'\u{7}'", "position 2"],
        ),
        ("spaces", "two words", ["\"two words\"", "position 4"]),
        (
            "user",
            "arn:aws:iam::123456789012:user/someone",
            ["user/someone", "not a role ARN"],
        ),
        ("not-ascii", "rôle", ["'ô'", "position 2"]),
    ] {
        let pod = fixture.pod(("team-b", name), Some(role));
        let named = format!("team-b/{name}");
        let all = [&["iam.amazonaws.com/role", &named], &parts[..]].concat();
        assert_denied_eventually(pod.place(), "b-writer", 403, &all);
        let answer = ask(pod.place(), "");
        assert!(answer.status == 403, "{name}: {answer:?}");
        assert!(!answer.headers.contains_key("x-injected"), "{answer:?}");
        assert!(
            !answer.body.trim_end().chars().any(char::is_control),
            "{:?}",
            answer.body
        );
    }
    // An empty annotation names no role.
    let empty = fixture.pod(("team-b", "empty"), Some(""));
    eventually(|| {
        let answer = ask(empty.place(), "");
        ensure!(matches!(answer.status, 403 | 404), "{answer:?}");
        ensure!(answer.body.contains("iam.amazonaws.com/role"), "{answer:?}");
        Ok(())
    });
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_malformed_expression_of_a_namespace_is_named() {
    let fixture = Fixture::start();
    for (namespace, expression, problem) in [
        ("broken", "a-(.*", "unclosed group"),
        ("huge", "(a{1000}){1000}{1000}", "size limit"),
    ] {
        fixture
            .cluster
            .objects()
            .put_namespace(namespace, Some(expression))
            .unwrap();
        let pod = fixture.pod((namespace, "pod"), Some("a-reader"));
        let parts = ["iam.amazonaws.com/permitted", namespace, problem];
        assert_denied_eventually(pod.place(), "", 403, &parts);
    }
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn broken_yaml_is_named_and_changes_nothing() {
    let fixture = Fixture::start();
    let objects = fixture.cluster.objects();
    let path = objects.path("namespace-team-a");
    let good = std::fs::read_to_string(&path).unwrap();
    let unclosed = "apiVersion: v1\nkind: [Namespace\nmetadata:\n  name: team-a\n";
    let tabs = "apiVersion: v1\n\tkind: Namespace\n";
    let binary = "\u{0}\u{1}\u{2}";
    for text in [unclosed, tabs, binary] {
        let mark = fixture.server.program().mark();
        objects.put_text("namespace-team-a", text).unwrap();
        let named = path.display().to_string();
        assert_logs(fixture.server.program(), mark, &["ERROR", &named]);
        fixture.assert_teams_are_served();
    }
    // Other files are still read, and so is this one when it is repaired.
    let carol = fixture.pod(("team-b", "carol"), Some("c-reader"));
    eventually(|| fixture.role_session(carol.place()));
    objects
        .put_text("namespace-team-a", &good.replace("a-.*", "nothing"))
        .unwrap();
    assert_denied_eventually(
        fixture.alice.place(),
        "",
        403,
        &["iam.amazonaws.com/permitted"],
    );
    objects.put_text("namespace-team-a", &good).unwrap();
    eventually(|| fixture.check_teams());
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_unusable_object_is_named_and_others_are_used() {
    let fixture = Fixture::start();
    let objects = fixture.cluster.objects();
    for (file, object, parts) in [
        (
            "kind",
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" } }),
            ["Secret", "kind"],
        ),
        (
            "no-uid",
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "team-a" }, "spec": { "nodeName": "node-1" } }),
            ["team-a/p", "uid"],
        ),
        (
            "types",
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": 7 } }),
            ["types.yaml", "Pod"],
        ),
        ("list", json!(["a", "b"]), ["object 1", "list"]),
    ] {
        let mark = fixture.server.program().mark();
        objects.put(file, &object).unwrap();
        let named = objects.path(file).display().to_string();
        assert_logs(fixture.server.program(), mark, &["ERROR", &named]);
        if file != "list" {
            assert_logs(
                fixture.server.program(),
                mark,
                &["ERROR", parts[0], parts[1]],
            );
        }
    }
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_denial_of_sts_reaches_the_pod() {
    use testbed::doubles::sts::{Behavior, Fault};
    let fixture = Fixture::start();
    let role = "arn:aws:iam::123456789012:role/untrusting";
    let fault = Some(Fault::AccessDenied);
    fixture.cluster.sts().behave(
        Some(role),
        Behavior {
            fault,
            ..Behavior::default()
        },
    );
    let pod = fixture.pod(("team-b", "dave"), Some("untrusting"));
    let parts = ["AccessDenied", "untrusting", "trust policy"];
    assert_denied_eventually(pod.place(), "untrusting", 403, &parts);
    fixture.assert_teams_are_served();
}
