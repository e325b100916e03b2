//! Assembly of the controller of `--node-taint`.

use kiam_common::metrics::Registry;
use kiam_common::tasks::Tasks;

use super::StartError;
use crate::args::NodeFlags;
use crate::node::Streams;
use crate::taint::{TaintController, TaintMetrics};

/// Starts the controller if the flag is set.
pub(super) fn start(
    flags: &NodeFlags,
    client: Option<kube::Client>,
    streams: Streams,
    registry: &Registry,
    tasks: &mut Tasks,
) -> Result<(), StartError> {
    let Some(taint) = flags.node_taint.clone() else {
        return Ok(());
    };
    let client = client.ok_or(StartError::TaintWithoutApi)?;
    let metrics = TaintMetrics::new(registry)?;
    let (after, agents) = (flags.node_taint_after, &flags.agent_service_account);
    let controller = TaintController::new(client, (taint, after), agents, streams, metrics);
    tasks.spawn("node taint", controller.run(tasks.stop()));
    Ok(())
}
