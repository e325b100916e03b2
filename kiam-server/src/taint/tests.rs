//! The changes of the taint, for all states of a node.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::api::{self, AgentManifest, NodeManifest};
use super::state::{Node, Plan, State};
use super::*;

const AFTER: Duration = Duration::from_secs(300);

fn node(tainted: bool, annotated: bool) -> Node {
    Node {
        tainted,
        annotated,
        leaving: false,
    }
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_taint_is_a_key_and_an_effect() {
    for (text, shown) in [
        ("kiam.io/x", "kiam.io/x:NoSchedule"),
        ("kiam.io/x:NoExecute", "kiam.io/x:NoExecute"),
        ("x:PreferNoSchedule", "x:PreferNoSchedule"),
    ] {
        assert_eq!(text.parse::<Taint>().unwrap().to_string(), shown);
    }
    for text in [
        "",
        ":NoSchedule",
        "x:",
        "x:noschedule",
        "x=y",
        "x:y:z",
        "x y",
    ] {
        assert!(text.parse::<Taint>().is_err(), "{text}");
    }
}

/// The changes of one node over time.
#[test]
fn the_taint_is_removed_from_guarded_nodes_and_added_to_nodes_without_an_agent() {
    let leaving = |node: Node| Node {
        leaving: true,
        ..node
    };
    // The node; the stream of its agent (none, unguarded, guarded); whether there is a pod of its
    // agent, and of another one; the change at once, and after the wait.
    for (node, stream, own, other, at_once, after_wait) in [
        (node(true, false), "guarded", true, true, "remove", "remove"),
        (node(true, true), "guarded", true, true, "remove", "remove"),
        // The pod of the agent is not known yet, or the agent is not a pod.
        (
            node(true, false),
            "guarded",
            false,
            false,
            "remove",
            "remove",
        ),
        (leaving(node(true, false)), "guarded", true, true, "", ""),
        (node(true, false), "unguarded", true, true, "", ""),
        (node(true, false), "", true, true, "", ""),
        (node(true, false), "", false, true, "", ""),
        // The agent is connected to another replica, or restarts.
        (node(false, true), "", true, true, "", ""),
        (node(false, true), "guarded", true, true, "", ""),
        (node(false, true), "", false, true, "", "put back"),
        (leaving(node(false, true)), "", false, true, "", ""),
        // A connected agent without a known pod.
        (node(false, true), "unguarded", false, true, "", ""),
        // The taint was never removed from this node.
        (node(false, false), "", false, true, "", ""),
        // There is no agent in the cluster: kiam is being removed.
        (node(false, true), "", false, false, "", ""),
    ] {
        let mut state = State::new(AFTER);
        state.node("n", node);
        if own {
            state.agent("own", "n");
        }
        if other {
            state.agent("other", "m");
        }
        let guarded = set(if stream == "guarded" { &["n"] } else { &[] });
        let attached = set(if stream.is_empty() { &[] } else { &["n"] });
        let now = Instant::now();
        let mut change = |at| {
            let Plan {
                remove, put_back, ..
            } = state.plan(&guarded, &attached, at);
            match (remove.len(), put_back.len()) {
                (0, 0) => "",
                (1, 0) => "remove",
                (0, 1) => "put back",
                _ => "both",
            }
        };
        let case = format!("{node:?} {stream:?} {own} {other}");
        assert_eq!(change(now), at_once, "{case}");
        assert_eq!(
            change(now + AFTER - Duration::from_secs(1)),
            at_once,
            "{case}"
        );
        assert_eq!(change(now + AFTER), after_wait, "{case}");
    }
}

#[test]
fn an_agent_that_returns_restarts_the_wait() {
    let mut state = State::new(AFTER);
    state.node("n", node(false, true));
    state.agent("other", "m");
    let none = set(&[]);
    let now = Instant::now();
    assert_eq!(state.plan(&none, &none, now).next, Some(now + AFTER));
    state.agent("own", "n");
    assert_eq!(state.plan(&none, &none, now + AFTER).next, None);
    // The pods of agents are listed again, without it.
    state.retain_agents(&set(&["other"]));
    let again = now + 2 * AFTER;
    let plan = state.plan(&none, &none, again);
    assert_eq!((plan.put_back.len(), plan.next), (0, Some(again + AFTER)));
    let plan = state.plan(&none, &none, again + AFTER);
    assert_eq!(plan.put_back, ["n"]);
    // A failed change is retried after the deferral.
    state.defer("n", again + 2 * AFTER);
    let plan = state.plan(&none, &none, again + AFTER);
    assert_eq!(
        (plan.put_back.len(), plan.next),
        (0, Some(again + 2 * AFTER))
    );
    assert_eq!(state.plan(&none, &none, again + 2 * AFTER).put_back, ["n"]);
    // The node is deleted.
    state.retain_nodes(&set(&[]));
    assert_eq!(state.plan(&none, &none, again + 3 * AFTER), Plan::default());
}

#[test]
fn objects_of_the_api_are_parsed() {
    let taint: Taint = "kiam.io/agent-not-ready".parse().unwrap();
    let read = |spec: serde_json::Value, annotations: serde_json::Value| {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "n", "annotations": annotations },
            "spec": spec, "status": { "images": [] },
        });
        api::trim(
            &serde_json::from_value::<NodeManifest>(object).unwrap(),
            &taint,
        )
    };
    let with = |key: &str, effect: &str| json!({ "taints": [{ "key": key, "effect": effect }] });
    let ours = "kiam.io/agent-not-ready";
    assert_eq!(read(with(ours, "NoSchedule"), json!({})), node(true, false));
    assert_eq!(read(with(ours, "NoExecute"), json!({})), node(false, false));
    assert_eq!(read(with("x", "NoSchedule"), json!({})), node(false, false));
    assert_eq!(
        read(json!({}), json!({ GUARDED: "true" })),
        node(false, true)
    );
    for (spec, phase, node) in [
        (json!({ "nodeName": "n" }), "Running", Some("n")),
        (json!({ "nodeName": "n" }), "Failed", None),
        (json!({}), "Pending", None),
        (json!({ "nodeName": "" }), "Pending", None),
    ] {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "uid": "u" },
            "spec": spec, "status": { "phase": phase },
        });
        let pod: AgentManifest = serde_json::from_value(object).unwrap();
        assert_eq!(api::agent(&pod), node);
    }
}
