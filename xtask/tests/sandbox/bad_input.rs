//! Bad input, one at a time: a clear message that names the thing at fault, nothing crashes, and
//! nothing else is affected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use xtask::kiam::Agent;
use xtask::pki::{Authority, Leaf, PemFiles};
use xtask::sandbox::{Finished, NodeOptions};
use xtask::stage::{Stage, StageNode};

use crate::play::{Play, cast, eventually, logs, programs, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "bad_input::a_certificate_that_is_missing_or_none_is_named",
        Needs::Programs,
        unusable_files,
    ),
    (
        "bad_input::an_agent_of_another_authority_is_refused",
        Needs::Programs,
        wrong_agent,
    ),
    (
        "bad_input::an_agent_of_another_node_is_refused",
        Needs::Programs,
        wrong_node,
    ),
    (
        "bad_input::a_server_of_another_authority_or_name_is_refused",
        Needs::Programs,
        wrong_server,
    ),
    (
        "bad_input::a_server_that_is_away_is_waited_for",
        Needs::Programs,
        no_server,
    ),
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

const LIMIT: Duration = Duration::from_secs(20);

/// The end of a program that must not have started.
fn failed(ended: Finished) -> Result<String> {
    let Finished {
        status,
        stdout,
        stderr,
    } = ended;
    let said = stdout + &stderr;
    ensure!(status.code() == Some(64), "{status}: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn launch_agent(stage: &Stage, node: &StageNode, tls: &PemFiles) -> Result<Agent> {
    stage.launch_agent(node, tls, &[])
}

fn unusable_files() -> Result<()> {
    let stage = Stage::new(&programs()?)?;
    let node = stage.node("node-1", NodeOptions::default())?;
    let folder = stage.sandbox().folder("bad")?;
    let (missing, garbage) = (folder.join("missing.pem"), folder.join("garbage.pem"));
    std::fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n",
    )?;
    let good = node.tls();
    let other_key = &stage.server_tls().key;
    for (tls, named) in [
        (
            PemFiles {
                cert: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                key: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                ca: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                cert: garbage.clone(),
                ..good.clone()
            },
            &garbage,
        ),
        (
            PemFiles {
                ca: garbage.clone(),
                ..good.clone()
            },
            &garbage,
        ),
        (
            PemFiles {
                key: good.cert.clone(),
                ..good.clone()
            },
            &good.cert,
        ),
        (
            PemFiles {
                key: other_key.clone(),
                ..good.clone()
            },
            other_key,
        ),
    ] {
        let named = named.display().to_string();
        let said = failed(launch_agent(&stage, &node, &tls)?.finish(LIMIT)?)?;
        ensure!(
            said.contains(&named),
            "the agent does not name {named}: {said}"
        );
        let said = failed(stage.launch_server(&tls, &[])?.finish(LIMIT)?)?;
        ensure!(
            said.contains(&named),
            "the server does not name {named}: {said}"
        );
    }
    ensure!(node.imds().traffic().connections() == 0);
    Ok(())
}

/// An agent on a node of its own, beside a play that must not notice.
fn beside(play: &Play, name: &str) -> Result<(StageNode, xtask::sandbox::Pod)> {
    let node = play.stage.node(name, NodeOptions::default())?;
    let pod = play.stage.pod(&node, ("team-b", name), Some("b-writer"))?;
    Ok((node, pod))
}

fn wrong_agent() -> Result<()> {
    let play = Play::begin()?;
    let (node, pod) = beside(&play, "node-2")?;
    let stranger = Authority::new("another")?;
    let files = stranger.write_node(&play.stage.sandbox().folder("stranger")?, "node-2")?;
    // It trusts the server's authority, and the server does not trust its.
    let tls = PemFiles {
        ca: node.tls().ca.clone(),
        ..files
    };
    let mark = play.server.program().mark();
    let agent = launch_agent(&play.stage, &node, &tls)?;
    logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"])?;
    logs(play.server.program(), mark, &["10.0.1.2", "certificate"])?;
    refused(pod.place(), "b-writer", 503, &["kiam-server"])?;
    play.others_are_unaffected()
}

fn wrong_node() -> Result<()> {
    let play = Play::begin()?;
    let (node, pod) = beside(&play, "node-2")?;
    // The certificate is good, and node-1's.
    let mark = play.server.program().mark();
    let agent = launch_agent(&play.stage, &node, play.node.tls())?;
    logs(agent.program(), 0, &["node-2"])?;
    logs(
        play.server.program(),
        mark,
        &["refused", "node-2", "node-1"],
    )?;
    refused(pod.place(), "b-writer", 503, &["kiam-server"])?;
    play.others_are_unaffected()
}

fn wrong_server() -> Result<()> {
    let stage = Stage::new(&programs()?)?;
    let node = stage.node("node-1", NodeOptions::default())?;
    let (alice, _) = cast(&stage, &node)?;
    let stranger = Authority::new("another")?;
    let address = ["10.0.0.1"];
    let of_stranger = Leaf {
        name: "s",
        alternative_names: &address,
        ..Leaf::default()
    };
    let elsewhere = Leaf {
        name: "s",
        alternative_names: &["elsewhere.example"],
        ..Leaf::default()
    };
    let folder = stage.sandbox().folder("servers")?;
    let ca = stage.server_tls().ca.clone();
    for (name, files) in [
        (
            "authority",
            PemFiles {
                ca: ca.clone(),
                ..stranger.write(&folder.join("1"), &of_stranger)?
            },
        ),
        (
            "name",
            stage.authority().write(&folder.join("2"), &elsewhere)?,
        ),
    ] {
        let mut server = stage.launch_server(&files, &[])?;
        server.ready()?;
        let agent = launch_agent(&stage, &node, node.tls())?;
        logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"]).context(name)?;
        refused(alice.place(), "a-reader", 503, &["kiam-server"])?;
    }
    ensure!(node.imds().traffic().connections() == 0);
    Ok(())
}

fn no_server() -> Result<()> {
    let stage = Stage::new(&programs()?)?;
    let node = stage.node("node-1", NodeOptions::default())?;
    let (alice, bob) = cast(&stage, &node)?;
    let agent = stage.launch_agent(&node, node.tls(), &[])?;
    logs(agent.program(), 0, &["10.0.0.1:9610", "trying again"])?;
    refused(
        alice.place(),
        "a-reader",
        503,
        &["kiam-server", "try again"],
    )?;
    ensure!(
        agent.operator("/readyz")?.status != 200,
        "it knows no pods yet"
    );

    let server = stage.start_server(&[])?;
    let mut play = Play {
        alice,
        bob,
        agent,
        server,
        node,
        stage,
    };
    play.agent.ready()?;
    play.others_are_unaffected()
}

fn malformed_roles() -> Result<()> {
    let play = Play::begin()?;
    let long = "r".repeat(3000);
    for (name, role, parts) in [
        ("no-arn", "arn:foo", &["arn:foo"][..]),
        ("long", &long, &["rrr"]),
        ("control", "a\u{7}b\u{1b}[31m\r\nX-Injected: 1", &[]),
        ("spaces", "two words", &["two words"]),
        ("user", "arn:aws:iam::123456789012:user/someone", &["user"]),
        ("not-ascii", "rôle", &[]),
    ] {
        let pod = play.stage.pod(&play.node, ("team-b", name), Some(role))?;
        let named = format!("team-b/{name}");
        let all = [&["iam.amazonaws.com/role", &named], parts].concat();
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
    let empty = play.stage.pod(&play.node, ("team-b", "empty"), Some(""))?;
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
    for (namespace, expression) in [("broken", "a-(.*"), ("huge", "(a{1000}){1000}{1000}")] {
        play.stage
            .objects()
            .put_namespace(namespace, Some(expression))?;
        let pod = play
            .stage
            .pod(&play.node, (namespace, "pod"), Some("a-reader"))?;
        let parts = ["iam.amazonaws.com/permitted", namespace];
        eventually(|| refused(pod.place(), "", 403, &parts)).context(expression)?;
    }
    play.others_are_unaffected()
}

fn broken_yaml() -> Result<()> {
    let play = Play::begin()?;
    let objects = play.stage.objects();
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
        .stage
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
    let objects = play.stage.objects();
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
    use xtask::doubles::sts::{Behaviour, Fault};
    let play = Play::begin()?;
    let role = "arn:aws:iam::123456789012:role/untrusting";
    let fault = Some(Fault::AccessDenied);
    play.stage.sts().behave(
        Some(role),
        Behaviour {
            fault,
            ..Behaviour::default()
        },
    );
    let pod = play
        .stage
        .pod(&play.node, ("team-b", "dave"), Some("untrusting"))?;
    let parts = ["AccessDenied", "untrusting", "trust policy"];
    eventually(|| refused(pod.place(), "untrusting", 403, &parts))?;
    play.others_are_unaffected()
}
