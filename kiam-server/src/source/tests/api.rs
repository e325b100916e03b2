//! The watches against an API that fails in many ways, under a simulated clock.

use std::sync::Arc;
use std::time::Duration;

use kiam_common::metrics::Registry;
use kiam_common::tasks::Tasks;
use serde_json::{Value, json};

use super::{metrics, pods};
use crate::cluster::Cluster;
use crate::permitted::Anchoring;
use crate::source::Watches;
use crate::testing::api::{ApiMode, FakeApi};

/// The time in which the watches must recover.
const RECOVERY: Duration = Duration::from_secs(60);

struct Fixture {
    api: FakeApi,
    cluster: Arc<Cluster>,
    registry: Registry,
    tasks: Tasks,
}

impl Fixture {
    async fn new() -> Self {
        let api = FakeApi::new();
        api.put("namespaces", json!({ "metadata": { "name": "web" } }));
        api.put("pods", pod("a"));
        api.put("pods", pod("b"));
        let (cluster, registry) = (Arc::new(Cluster::new()), Registry::new());
        let watches = Watches::new(
            api.client(),
            Arc::clone(&cluster),
            Anchoring::Whole,
            metrics(&registry),
        );
        let mut tasks = Tasks::new();
        watches.spawn(&mut tasks);
        cluster.synced().await;
        settle().await;
        assert_eq!(pods(&cluster), ["a", "b"]);
        Self {
            api,
            cluster,
            registry,
            tasks,
        }
    }

    fn errors(&self, reason: &str) -> u64 {
        let line = format!("kiam_k8s_watch_errors_total{{kind=\"Pod\",reason=\"{reason}\"}} ");
        let text = prometheus::TextEncoder::new();
        let text = text.encode_to_string(&self.registry.gather()).unwrap();
        let count = text.lines().find_map(|text| text.strip_prefix(&line));
        count.unwrap().parse().unwrap()
    }

    /// Waits until the watches have recovered, and know exactly these pods.
    async fn recovers(&self, expected: &[&str]) {
        let until = tokio::time::Instant::now() + RECOVERY;
        while pods(&self.cluster) != expected {
            let known = pods(&self.cluster);
            assert!(
                tokio::time::Instant::now() < until,
                "{known:?}, not {expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn end(self) {
        self.tasks.shut_down(RECOVERY).await.unwrap();
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "web", "uid": format!("uid-{name}") },
        "spec": { "nodeName": "node-1" },
        "status": { "phase": "Running" },
    })
}

/// Lets all pending work of the watches finish.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn malformed_objects_are_absent_and_do_not_affect_others() {
    let fixture = Fixture::new().await;
    let mut bad = pod("a");
    bad["spec"]["nodeName"] = json!(["node-1"]);
    fixture.api.put("pods", bad);
    fixture.api.put("pods", pod("c"));
    settle().await;
    assert_eq!(pods(&fixture.cluster), ["b", "c"]);
    // The same in a list; once it is valid, it is back.
    fixture.api.expire("pods");
    fixture.recovers(&["b", "c"]).await;
    fixture.api.put("pods", pod("a"));
    fixture.recovers(&["a", "b", "c"]).await;
    fixture.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_or_expires_restarts_and_loses_nothing() {
    let fixture = Fixture::new().await;
    // The next list contains what happened in between.
    fixture.api.expire("pods");
    fixture.api.remove("pods", "a", false);
    fixture.recovers(&["b"]).await;
    assert_eq!(fixture.errors("expired"), 1);

    fixture.api.write("pods", "this is not JSON\n");
    settle().await;
    assert_eq!(pods(&fixture.cluster), ["b"], "the known pods stay");
    fixture.api.put("pods", pod("c"));
    fixture.recovers(&["b", "c"]).await;

    fixture.api.break_connections();
    settle().await;
    assert_eq!(pods(&fixture.cluster), ["b", "c"]);
    assert!(fixture.errors("broken") > 0);
    tokio::time::sleep(RECOVERY).await;
    fixture.api.put("pods", pod("d"));
    settle().await;
    assert_eq!(pods(&fixture.cluster), ["b", "c", "d"]);
    // A deletion without an event, while a connection breaks in the middle of a line.
    fixture.api.break_connections();
    fixture.api.remove("pods", "d", false);
    fixture.api.expire("pods");
    tokio::time::sleep(RECOVERY).await;
    fixture.api.expire("pods");
    fixture.recovers(&["b", "c"]).await;
    fixture.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_down_receives_few_requests_and_is_used_once_it_is_back() {
    for mode in [ApiMode::Unavailable, ApiMode::Refuses] {
        let fixture = Fixture::new().await;
        fixture.api.set_mode(mode);
        let before = fixture.api.requests();
        fixture.api.remove("pods", "a", false);
        fixture.api.put("pods", pod("c"));
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(pods(&fixture.cluster), ["a", "b"], "{mode:?}");
            assert!(fixture.cluster.is_synced());
        }
        let asked = fixture.api.requests() - before;
        assert!((10..200).contains(&asked), "{mode:?}: {asked} requests");
        assert!(fixture.errors("start") + fixture.errors("broken") > 0);
        fixture.api.set_mode(ApiMode::Up);
        fixture.api.expire("pods");
        let recovered = async {
            tokio::time::sleep(RECOVERY).await;
            // The API may have lost its history.
            fixture.api.expire("pods");
            fixture.recovers(&["b", "c"]).await;
        };
        recovered.await;
        fixture.end().await;
    }
}
