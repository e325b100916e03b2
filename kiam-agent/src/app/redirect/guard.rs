//! Guards of other paths to the metadata service, and the counter of bypass packets.

use super::{RedirectError, Redirected};
use crate::app::BackgroundTask;
use crate::args::{Args, Redirect};
use crate::bypass_counter::{self, BypassCounter, BypassMetric};
use crate::route_guard::{self, RouteGuard, RouteGuardMetrics};

/// Checks that the redirection supports the guards.
pub(crate) fn check_guard(args: &Args) -> Result<(), RedirectError> {
    let guard = args.guard();
    match args.redirect {
        Redirect::Iptables if guard.egress => Err(RedirectError::Guard { guard }),
        Redirect::Ebpf if !guard.egress => {
            tracing::warn!(
                %guard,
                "pods can send packets to the metadata service: only TCP connects are redirected or refused"
            );
            Ok(())
        }
        Redirect::Ebpf | Redirect::Iptables => Ok(()),
    }
}

/// Installs the route guard if it is wanted; otherwise removes that of an earlier agent.
pub(crate) fn with_route_guard(
    args: &Args,
    mut redirected: Redirected,
) -> Result<Redirected, RedirectError> {
    let guard = args.guard();
    if !guard.route {
        let removed = route_guard::cleanup()?;
        if removed > 0 {
            tracing::warn!(%guard, "removed the route guard of an earlier agent");
        }
        return Ok(redirected);
    }
    let metrics = RouteGuardMetrics::new()?;
    redirected.metrics.push(Box::new(metrics.collector()));
    let route_guard = RouteGuard::install(metrics)?;
    tracing::info!(
        "the route guard is in effect: no forwarded packet reaches the metadata service"
    );
    // Operators who have the firewall rules removed want pods to reach the node's metadata service.
    let remove = args.redirect == Redirect::Iptables && args.iptables.iptables_remove;
    let task = BackgroundTask::new("route guard", move |_view, stop| {
        route_guard.run(stop, remove)
    });
    redirected.tasks.push(task);
    Ok(redirected)
}

/// Counts packets that pods send past the kernel programs, if the programs guard egress. A kernel
/// that cannot count them does not stop the agent.
pub(crate) fn with_bypass_counter(
    args: &Args,
    mut redirected: Redirected,
) -> Result<Redirected, RedirectError> {
    if !args.guard().egress {
        match bypass_counter::cleanup() {
            Ok(true) => tracing::info!("removed the bypass counter of an earlier agent"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("the bypass counter of an earlier agent may be left: {error}");
            }
        }
        return Ok(redirected);
    }
    match BypassCounter::install() {
        Ok(counter) => {
            let metric = BypassMetric::new(counter)?;
            redirected.metrics.push(Box::new(metric));
        }
        Err(error) => {
            tracing::warn!("packets that bypass the kernel programs are not counted: {error}");
        }
    }
    Ok(redirected)
}
