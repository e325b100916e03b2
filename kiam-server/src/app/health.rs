//! The gRPC health service, for the kubelet's probes and for load balancers: serving once the
//! server has read the cluster, and not serving once it is about to stop.

use std::sync::Arc;

use kiam_common::api::node::v1::node_service_server::NodeServiceServer;
use kiam_common::readiness::Awaited;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cluster::Cluster;
use crate::node::Service;

/// The name of the server as a whole (gRPC health checking protocol).
const WHOLE: &str = "";

type NodeStream = NodeServiceServer<Service>;

/// Reports the state of the server until `stop` is cancelled.
pub(super) async fn report(
    reporter: HealthReporter,
    cluster: Arc<Cluster>,
    synced: Awaited,
    stop: CancellationToken,
) {
    set(&reporter, ServingStatus::NotServing).await;
    tokio::select! {
        () = cluster.synced() => {}
        () = stop.cancelled() => return,
    }
    synced.done();
    set(&reporter, ServingStatus::Serving).await;
    stop.cancelled().await;
    set(&reporter, ServingStatus::NotServing).await;
}

async fn set(reporter: &HealthReporter, status: ServingStatus) {
    reporter.set_service_status(WHOLE, status).await;
    match status {
        ServingStatus::Serving => reporter.set_serving::<NodeStream>().await,
        _ => reporter.set_not_serving::<NodeStream>().await,
    }
}
