//! Objects in files that change and may be invalid, and objects from a watch.

mod api;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;

use super::kubernetes::apply_events;
use super::manifest::PodManifest;
use super::*;
use crate::cluster::Cluster;
use crate::cluster::object::{Kind, Object};
use crate::permitted::Anchoring;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: frontend
  namespace: web
  uid: uid-1
  annotations:
    iam.amazonaws.com/role: reader
  managedFields: [{manager: kubelet}]
spec:
  nodeName: node-1
  serviceAccountName: frontend
  containers: [{name: main, image: x}]
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
";
const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: web
  annotations:
    iam.amazonaws.com/permitted: .*
";

fn pods(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<_> = cluster
        .node("node-1")
        .iter()
        .map(|context| context.pod.name.to_string())
        .collect();
    names.sort();
    names
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

async fn eventually(condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the condition did not hold within five seconds");
}

#[test]
fn sources_are_parsed() {
    assert_eq!("kubernetes".parse(), Ok(SourceFlag::Kubernetes));
    assert_eq!("file:/a:b".parse(), Ok(SourceFlag::Files("/a:b".into())));
    for text in ["", "file:", "files:/a", "Kubernetes"] {
        let error = text.parse::<SourceFlag>().unwrap_err().to_string();
        assert!(error.contains("file:PATH"), "{error}");
    }
}

#[test]
fn objects_are_reduced_to_the_fields_that_decide() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "all.yaml", &format!("{POD}---{NAMESPACE}"));
    let cluster = Arc::new(Cluster::new());
    Files::new(
        folder.path().join("all.yaml"),
        Arc::clone(&cluster),
        Anchoring::Whole,
    )
    .unwrap();
    assert!(cluster.is_synced());
    let [context] = &cluster.node("node-1")[..] else {
        panic!("one pod")
    };
    let pod = &context.pod;
    assert_eq!(
        (pod.uid.as_str(), &*pod.namespace, &*pod.service_account),
        ("uid-1", "web", "frontend")
    );
    assert_eq!(
        pod.annotations.as_ref().unwrap().role.as_deref(),
        Some("reader")
    );
    let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    assert!(context.namespace.is_some());
    assert!(context.service_account.is_none());
}

#[tokio::test]
async fn changed_files_are_reloaded_and_invalid_ones_keep_their_previous_objects() {
    let folder = tempfile::tempdir().unwrap();
    let second = POD.replace("frontend", "backend").replace("uid-1", "uid-2");
    write(folder.path(), "a.yaml", POD);
    write(folder.path(), "b.yml", &second);
    write(folder.path(), "notes.txt", "not read");
    let cluster = Arc::new(Cluster::new());
    let files = Files::new(
        folder.path().to_owned(),
        Arc::clone(&cluster),
        Anchoring::Whole,
    )
    .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(files.run(stop.clone()));
    assert_eq!(pods(&cluster), ["backend", "frontend"]);

    // An invalid file keeps its objects, and does not affect other files.
    write(folder.path(), "a.yaml", "kind: [Pod");
    write(
        folder.path(),
        "b.yml",
        &second.replace("backend", "database"),
    );
    eventually(|| pods(&cluster) == ["database", "frontend"]).await;
    // Another file, without the pod, is renamed over it.
    write(folder.path(), "a.new", NAMESPACE);
    std::fs::rename(folder.path().join("a.new"), folder.path().join("a.yaml")).unwrap();
    eventually(|| pods(&cluster) == ["database"]).await;
    // Finished pods and the objects of deleted files count as deleted.
    write(
        folder.path(),
        "b.yml",
        &second.replace("Running", "Succeeded"),
    );
    eventually(|| pods(&cluster).is_empty()).await;
    write(
        folder.path(),
        "c.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"c\", \"namespace\": \"web\", \"uid\": \"c\"}, \"spec\": {\"nodeName\": \"node-1\"}}",
    );
    eventually(|| pods(&cluster) == ["c"]).await;
    std::fs::remove_file(folder.path().join("c.json")).unwrap();
    eventually(|| pods(&cluster).is_empty()).await;
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn errors_name_the_file_the_object_and_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    for (text, parts) in [
        (
            "kind: [Pod".to_owned(),
            ["x.yaml", "not valid YAML", "line 1"],
        ),
        (
            POD.replace("uid: uid-1", "labels: {}"),
            ["object 1", "Pod web/frontend", "metadata.uid"],
        ),
        (
            format!("{NAMESPACE}---{}", POD.replace("'fd00::1'", "nowhere")),
            ["object 2", "Pod web/frontend", "\"nowhere\""],
        ),
        (
            POD.replace("kind: Pod", "kind: Secret"),
            ["object 1", "Secret web/frontend", "v1/Pod"],
        ),
        (
            POD.replace("nodeName: node-1", "nodeName: [1]"),
            ["object 1", "Pod web/frontend", "expected a string"],
        ),
        ("just text".to_owned(), ["object 1", "x.yaml", "?"]),
    ] {
        std::fs::write(&file, &text).unwrap();
        let error = match files::parse(&file, &Anchoring::Whole.into()) {
            Ok((_, errors)) => errors[0].to_string(),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let missing = Files::new(
        folder.path().join("missing.yaml"),
        Arc::new(Cluster::new()),
        Anchoring::Whole,
    );
    assert!(missing.unwrap_err().to_string().contains("missing.yaml"));
}

/// A pod as the API sends it.
fn sent(name: &str, edit: impl Fn(&mut serde_json::Value)) -> DeserializeGuard<PodManifest> {
    let mut pod: serde_json::Value = serde_saphyr::from_str(POD).unwrap();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["uid"] = format!("uid-{name}").into();
    edit(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn metrics(registry: &kiam_common::metrics::Registry) -> WatchMetrics {
    WatchMetrics::new(registry, Arc::new(crate::clock::SystemClock)).unwrap()
}

#[tokio::test]
async fn a_broken_watch_keeps_the_known_objects_and_counts_the_reason() {
    let cluster = Cluster::new();
    let registry = kiam_common::metrics::Registry::new();
    let trim = |pod| manifest::pod(pod).map(|pod| pod.map(Object::Pod));
    let gone = kube::core::Status {
        code: 410,
        ..kube::core::Status::default()
    };
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(sent("a", |_| {}))),
        Ok(Event::InitDone),
        Err(watcher::Error::WatchError(Box::new(gone))),
        Err(watcher::Error::NoResourceVersion),
    ];
    let metrics = metrics(&registry);
    apply_events(&cluster, &metrics, Kind::Pod, stream::iter(events), trim).await;
    assert_eq!(pods(&cluster), ["a"]);
    let text = prometheus::TextEncoder::new();
    let text = text.encode_to_string(&registry.gather()).unwrap();
    for (reason, count) in [("expired", 1), ("malformed", 1), ("list", 0)] {
        let line =
            format!("kiam_k8s_watch_errors_total{{kind=\"Pod\",reason=\"{reason}\"}} {count}\n");
        assert!(text.contains(&line), "{line}: {text}");
    }
    let last = "kiam_k8s_watch_last_event_timestamp_seconds{kind=\"Pod\"} 1";
    assert!(text.contains(last), "{text}");
}

/// A clock that stands still.
struct FixedClock(std::time::SystemTime);

impl crate::clock::Clock for FixedClock {
    fn now(&self) -> std::time::SystemTime {
        self.0
    }
}

#[tokio::test]
async fn the_lag_is_the_time_from_the_write_to_its_event() {
    let (cluster, registry) = (Cluster::new(), kiam_common::metrics::Registry::new());
    let now = std::time::UNIX_EPOCH + Duration::from_secs(1_767_225_607);
    let metrics = WatchMetrics::new(&registry, Arc::new(FixedClock(now))).unwrap();
    let at = |time: &'static str| {
        move |pod: &mut serde_json::Value| {
            pod["metadata"]["creationTimestamp"] = "2025-12-31T00:00:00Z".into();
            pod["metadata"]["managedFields"] = serde_json::json!([
                { "manager": "kubectl", "time": "2025-12-31T00:00:00Z" },
                { "manager": "kubelet", "time": time },
            ]);
        }
    };
    let listed = |pod: &mut serde_json::Value| at("2026-01-01T00:00:00Z")(pod);
    let events = vec![
        Ok(Event::Init),
        // An object in a list has no lag: it may have been written at any time before.
        Ok(Event::InitApply(sent("a", listed))),
        Ok(Event::InitDone),
        Ok(Event::Apply(sent("a", at("2026-01-01T00:00:00Z")))),
        // A time in the future, and no time at all.
        Ok(Event::Apply(sent("a", at("2027-01-01T00:00:00Z")))),
        Ok(Event::Apply(sent("b", |_| {}))),
    ];
    let trim = |pod| manifest::pod(pod).map(|pod| pod.map(Object::Pod));
    apply_events(&cluster, &metrics, Kind::Pod, stream::iter(events), trim).await;
    let text = prometheus::TextEncoder::new();
    let text = text.encode_to_string(&registry.gather()).unwrap();
    for line in [
        "kiam_k8s_watch_lag_seconds_count{kind=\"Pod\"} 2\n",
        "kiam_k8s_watch_lag_seconds_sum{kind=\"Pod\"} 7\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn a_restarted_watch_removes_deleted_objects_and_skips_invalid_ones() {
    let cluster = Cluster::new();
    let trim = |pod| manifest::pod(pod).map(|pod| pod.map(Object::Pod));
    let play = async |events: Vec<Event<DeserializeGuard<PodManifest>>>| {
        apply_events(
            &cluster,
            &metrics(&kiam_common::metrics::Registry::new()),
            Kind::Pod,
            stream::iter(events.into_iter().map(Ok)),
            trim,
        )
        .await;
        pods(&cluster)
    };
    let same = |_: &mut serde_json::Value| {};
    let listed = |names: &[&str]| {
        let objects = names.iter().map(|name| Event::InitApply(sent(name, same)));
        [Event::Init]
            .into_iter()
            .chain(objects)
            .chain([Event::InitDone])
            .collect::<Vec<_>>()
    };
    assert_eq!(play(listed(&["a", "b"])).await, ["a", "b"]);
    // 410 Gone: objects are listed again, and b was deleted meanwhile.
    assert_eq!(play(listed(&["a", "c"])).await, ["a", "c"]);
    assert_eq!(play(vec![Event::Delete(sent("c", same))]).await, ["a"]);
    // A malformed object counts as absent, and does not affect the others.
    let malformed = |pod: &mut serde_json::Value| pod["spec"]["nodeName"] = 7.into();
    let events = vec![
        Event::Apply(sent("a", malformed)),
        Event::Apply(sent("d", same)),
    ];
    assert_eq!(play(events).await, ["d"]);
    let finished = |pod: &mut serde_json::Value| pod["status"]["phase"] = "Failed".into();
    assert_eq!(
        play(vec![Event::Apply(sent("d", finished))]).await,
        Vec::<String>::new()
    );
}
