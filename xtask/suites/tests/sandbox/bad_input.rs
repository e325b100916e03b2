//! Bad input, one at a time: a clear message that names the thing at fault, nothing crashes, and
//! nothing else is affected. Here: what the cluster's objects say, and what STS answers.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::play::{Play, eventually, logs, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "bad_input::malformed_roles_are_named",
        Needs::Programs,
        malformed_roles,
    ),
    (
        "bad_input::a_malformed_expression_of_a_namespace_is_named",
        Needs::Programs,
        malformed_expression,
    ),
    (
        "bad_input::broken_yaml_is_named_and_changes_nothing",
        Needs::Programs,
        broken_yaml,
    ),
    (
        "bad_input::an_unusable_object_is_named_and_others_are_used",
        Needs::Programs,
        unusable_object,
    ),
    (
        "bad_input::what_sts_refuses_is_told_to_the_pod",
        Needs::Programs,
        denied_by_sts,
    ),
];

fn malformed_roles() -> Result<()> {
    let play = Play::begin()?;
    let long = "r".repeat(3000);
    for (name, role, parts) in [
        ("no-arn", "arn:foo", ["\"arn:foo\"", "no role ARN"]),
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
            ["user/someone", "no role ARN"],
        ),
        ("not-ascii", "rôle", ["'ô'", "position 2"]),
    ] {
        let pod = play.cluster.pod(&play.node, ("team-b", name), Some(role))?;
        let named = format!("team-b/{name}");
        let all = [&["iam.amazonaws.com/role", &named], &parts[..]].concat();
        eventually(|| refused(pod.place(), "b-writer", 403, &all)).context(name)?;
        let answer = crate::play::ask(pod.place(), "")?.answer()?;
        ensure!(answer.status == 403, "{name}: {answer:?}");
        ensure!(!answer.headers.contains_key("x-injected"), "{answer:?}");
        ensure!(
            !answer.body.trim_end().chars().any(char::is_control),
            "{:?}",
            answer.body
        );
    }
    // An empty one names no role.
    let empty = play
        .cluster
        .pod(&play.node, ("team-b", "empty"), Some(""))?;
    eventually(|| {
        let answer = crate::play::ask(empty.place(), "")?.answer()?;
        ensure!(matches!(answer.status, 403 | 404), "{answer:?}");
        ensure!(answer.body.contains("iam.amazonaws.com/role"), "{answer:?}");
        Ok(())
    })?;
    play.others_are_unaffected()
}

fn malformed_expression() -> Result<()> {
    let play = Play::begin()?;
    for (namespace, expression, problem) in [
        ("broken", "a-(.*", "unclosed group"),
        ("huge", "(a{1000}){1000}{1000}", "size limit"),
    ] {
        play.cluster
            .objects()
            .put_namespace(namespace, Some(expression))?;
        let pod = play
            .cluster
            .pod(&play.node, (namespace, "pod"), Some("a-reader"))?;
        let parts = ["iam.amazonaws.com/permitted", namespace, problem];
        eventually(|| refused(pod.place(), "", 403, &parts)).context(expression)?;
    }
    play.others_are_unaffected()
}

fn broken_yaml() -> Result<()> {
    let play = Play::begin()?;
    let objects = play.cluster.objects();
    let path = objects.path("namespace-team-a");
    let good = std::fs::read_to_string(&path)?;
    for (what, text) in [
        (
            "unclosed",
            "apiVersion: v1\nkind: [Namespace\nmetadata:\n  name: team-a\n",
        ),
        ("tabs", "apiVersion: v1\n\tkind: Namespace\n"),
        ("binary", "\u{0}\u{1}\u{2}"),
    ] {
        let mark = play.server.program().mark();
        objects.put_text("namespace-team-a", text)?;
        let named = path.display().to_string();
        logs(play.server.program(), mark, &["ERROR", &named]).context(what)?;
        play.others_are_unaffected().context(what)?;
    }
    // Other files are still read, and so is this one when it is mended.
    let carol = play
        .cluster
        .pod(&play.node, ("team-b", "carol"), Some("c-reader"))?;
    eventually(|| play.identity(carol.place()))?;
    objects.put_text("namespace-team-a", &good.replace("a-.*", "nothing"))?;
    eventually(|| {
        refused(
            play.alice.place(),
            "",
            403,
            &["iam.amazonaws.com/permitted"],
        )
    })?;
    objects.put_text("namespace-team-a", &good)?;
    eventually(|| play.others_are_unaffected())
}

fn unusable_object() -> Result<()> {
    let play = Play::begin()?;
    let objects = play.cluster.objects();
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
        let mark = play.server.program().mark();
        objects.put(file, &object)?;
        let named = objects.path(file).display().to_string();
        logs(play.server.program(), mark, &["ERROR", &named]).context(file)?;
        if file != "list" {
            logs(play.server.program(), mark, &["ERROR", parts[0], parts[1]]).context(file)?;
        }
    }
    play.others_are_unaffected()
}

fn denied_by_sts() -> Result<()> {
    use testbed::doubles::sts::{Behaviour, Fault};
    let play = Play::begin()?;
    let role = "arn:aws:iam::123456789012:role/untrusting";
    let fault = Some(Fault::AccessDenied);
    play.cluster.sts().behave(
        Some(role),
        Behaviour {
            fault,
            ..Behaviour::default()
        },
    );
    let pod = play
        .cluster
        .pod(&play.node, ("team-b", "dave"), Some("untrusting"))?;
    let parts = ["AccessDenied", "untrusting", "trust policy"];
    eventually(|| refused(pod.place(), "untrusting", 403, &parts))?;
    play.others_are_unaffected()
}
