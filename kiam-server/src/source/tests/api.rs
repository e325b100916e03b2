//! The real watches against an API that fails in every way, for minutes of a clock that is the test's.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{metrics, pods};
use crate::cluster::Cluster;
use crate::permitted::Anchoring;
use crate::source::Watches;
use crate::testing::api::{FakeApi, Mood};

/// As long as the watches may take to begin again.
const RECOVERY: Duration = Duration::from_secs(60);

struct Stage {
    api: FakeApi,
    cluster: Arc<Cluster>,
    registry: Registry,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Stage {
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
        let stop = CancellationToken::new();
        let running = tokio::spawn(watches.run(stop.clone()));
        cluster.synced().await;
        settle().await;
        assert_eq!(pods(&cluster), ["a", "b"]);
        Self {
            api,
            cluster,
            registry,
            stop,
            running,
        }
    }

    fn errors(&self, reason: &str) -> u64 {
        let line = format!("kiam_k8s_watch_errors_total{{kind=\"Pod\",reason=\"{reason}\"}} ");
        let text = prometheus::TextEncoder::new();
        let text = text.encode_to_string(&self.registry.gather()).unwrap();
        let count = text.lines().find_map(|text| text.strip_prefix(&line));
        count.unwrap().parse().unwrap()
    }

    /// What happens now is seen, be it after the watches have begun again.
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
        self.stop.cancel();
        self.running.await.unwrap();
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

/// Lets everything that can happen now happen.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn objects_that_are_malformed_are_absent_and_others_are_not() {
    let stage = Stage::new().await;
    let mut bad = pod("a");
    bad["spec"]["nodeName"] = json!(["node-1"]);
    stage.api.put("pods", bad);
    stage.api.put("pods", pod("c"));
    settle().await;
    assert_eq!(pods(&stage.cluster), ["b", "c"]);
    // Also in a list; and mended it is there again.
    stage.api.expire("pods");
    stage.recovers(&["b", "c"]).await;
    stage.api.put("pods", pod("a"));
    stage.recovers(&["a", "b", "c"]).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_torn_or_too_old_begins_again_and_loses_nothing() {
    let stage = Stage::new().await;
    // What happens in between is in the next list.
    stage.api.expire("pods");
    stage.api.remove("pods", "a", false);
    stage.recovers(&["b"]).await;
    assert_eq!(stage.errors("expired"), 1);

    stage.api.write("pods", "this is no JSON\n");
    settle().await;
    assert_eq!(pods(&stage.cluster), ["b"], "what was known stays");
    stage.api.put("pods", pod("c"));
    stage.recovers(&["b", "c"]).await;

    stage.api.cut();
    settle().await;
    assert_eq!(pods(&stage.cluster), ["b", "c"]);
    assert!(stage.errors("broken") > 0);
    tokio::time::sleep(RECOVERY).await;
    stage.api.put("pods", pod("d"));
    settle().await;
    assert_eq!(pods(&stage.cluster), ["b", "c", "d"]);
    // A deletion that nobody told of, in the middle of a line that was torn.
    stage.api.cut();
    stage.api.remove("pods", "d", false);
    stage.api.expire("pods");
    tokio::time::sleep(RECOVERY).await;
    stage.api.expire("pods");
    stage.recovers(&["b", "c"]).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_down_for_minutes_is_asked_seldom_and_believed_when_it_is_back() {
    for mood in [Mood::Unavailable, Mood::Refuses] {
        let stage = Stage::new().await;
        stage.api.mood(mood);
        let before = stage.api.requests();
        stage.api.remove("pods", "a", false);
        stage.api.put("pods", pod("c"));
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(pods(&stage.cluster), ["a", "b"], "{mood:?}");
            assert!(stage.cluster.is_synced());
        }
        let asked = stage.api.requests() - before;
        assert!((10..200).contains(&asked), "{mood:?}: {asked} requests");
        assert!(stage.errors("start") + stage.errors("broken") > 0);
        stage.api.mood(Mood::Up);
        stage.api.expire("pods");
        let recovered = async {
            tokio::time::sleep(RECOVERY).await;
            // Its history may have gone with it.
            stage.api.expire("pods");
            stage.recovers(&["b", "c"]).await;
        };
        recovered.await;
        stage.end().await;
    }
}
