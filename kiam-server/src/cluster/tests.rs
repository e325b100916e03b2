//! Who is woken by what, and what a kind's listing leaves.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::object::{Kind, Namespace, Object, ObjectKey, ServiceAccount};
use super::*;
use crate::policy::{Anchoring, Permitted};
use crate::testing::pod;

async fn woken(signal: &Notify) -> bool {
    timeout(Duration::from_millis(1), signal.notified())
        .await
        .is_ok()
}

fn namespace(name: &str, permitted: &str) -> Namespace {
    Namespace {
        name: name.into(),
        permitted: Permitted::compile(Some(permitted), Anchoring::Whole),
    }
}

fn account(role: &str) -> ServiceAccount {
    ServiceAccount {
        namespace: "web".into(),
        name: "default".into(),
        role: Some(role.into()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_woken_by_what_concerns_its_node_and_by_nothing_else() {
    let cluster = Arc::new(Cluster::new());
    let signal = Arc::new(Notify::new());
    let subscription = cluster.subscribe("node-1", Arc::clone(&signal));
    let a = || pod("a", "web", "a", "node-1");
    let moved = pod("a", "web", "a", "node-2");
    let changes: [(&str, Object, bool); 11] = [
        ("a pod of the node", a().into(), true),
        ("the same again", a().into(), false),
        (
            "a pod of another node",
            pod("b", "web", "b", "node-2").into(),
            false,
        ),
        (
            "a pod of no node yet",
            pod("c", "web", "c", "").into(),
            false,
        ),
        (
            "the namespace of its pod",
            namespace("web", "x").into(),
            true,
        ),
        ("the same again", namespace("web", "x").into(), false),
        ("another namespace", namespace("other", "x").into(), false),
        ("its permission", namespace("web", "y").into(), true),
        ("the service account of its pod", account("x").into(), true),
        ("the same again", account("x").into(), false),
        ("the pod moves away", moved.into(), true),
    ];
    for (what, object, wakes) in changes {
        cluster.apply(object);
        assert_eq!(woken(&signal).await, wakes, "{what}");
    }
    assert!(cluster.node("node-1").is_empty());
    assert_eq!(cluster.node("node-2").len(), 2);
    cluster.apply(a().into());
    assert!(woken(&signal).await);
    cluster.delete(&ObjectKey::Pod("a".into()));
    assert!(woken(&signal).await);
    drop(subscription);
    cluster.apply(a().into());
    assert!(!woken(&signal).await);
}

#[test]
fn a_listing_leaves_what_it_names_and_makes_its_kind_known() {
    let cluster = Cluster::new();
    for uid in ["a", "b", "c"] {
        cluster.apply(pod(uid, "web", uid, "node-1").into());
    }
    cluster.apply(namespace("web", "x").into());
    assert!(!cluster.is_synced());
    let listed: HashSet<_> = ["a", "c"].map(|uid| ObjectKey::Pod(uid.into())).into();
    cluster.listed(Kind::Pod, &listed);
    assert_eq!(cluster.node("node-1").len(), 2);
    assert!(cluster.pod("b").is_none());
    for kind in [Kind::Namespace, Kind::ServiceAccount] {
        cluster.listed(kind, &HashSet::new());
    }
    assert!(cluster.is_synced());
    let counts = cluster.counts();
    assert_eq!(
        counts,
        [
            (Kind::Namespace, 0),
            (Kind::ServiceAccount, 0),
            (Kind::Pod, 2)
        ]
    );
}
