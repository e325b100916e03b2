//! Wake-ups of readers, and the effect of complete lists.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::object::{Kind, Namespace, Object, ObjectKey, ServiceAccount};
use super::*;
use crate::permitted::{Anchoring, Permitted};
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
async fn a_reader_is_woken_only_by_changes_that_concern_its_node() {
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
fn a_complete_list_removes_other_objects_and_makes_its_kind_known() {
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

#[test]
fn an_address_belongs_to_the_newest_pod_outside_the_network_of_its_node() {
    let at = |cluster: &Cluster, address: &str| {
        let context = cluster.by_address(address.parse().unwrap());
        context.map(|context| context.pod.uid.to_string())
    };
    let having = |uid: &str, created, addresses: &[&str]| {
        let mut pod = pod(uid, "web", uid, "node-1");
        pod.created = created;
        pod.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        pod
    };
    let cluster = Cluster::new();
    cluster.apply(having("old", 1, &["10.0.0.1", "fd00::1"]).into());
    assert_eq!(at(&cluster, "10.0.0.1"), None, "not indexed yet");
    cluster.index_addresses();
    assert_eq!(at(&cluster, "10.0.0.1").as_deref(), Some("old"));
    assert_eq!(at(&cluster, "::ffff:10.0.0.1").as_deref(), Some("old"));
    // The newest pod has the address, regardless of the order of events.
    cluster.apply(having("new", 2, &["10.0.0.1"]).into());
    cluster.apply(having("old", 1, &["10.0.0.1", "fd00::2"]).into());
    assert_eq!(at(&cluster, "10.0.0.1").as_deref(), Some("new"));
    assert_eq!(at(&cluster, "fd00::1"), None);
    assert_eq!(at(&cluster, "fd00::2").as_deref(), Some("old"));
    let mut host = having("host", 3, &["10.0.0.1"]);
    host.host_network = true;
    cluster.apply(host.into());
    assert_eq!(at(&cluster, "10.0.0.1").as_deref(), Some("new"));
    cluster.delete(&ObjectKey::Pod("new".into()));
    assert_eq!(at(&cluster, "10.0.0.1").as_deref(), Some("old"));
    cluster.delete(&ObjectKey::Pod("old".into()));
    assert_eq!(at(&cluster, "10.0.0.1"), None);
}
