//! Adds the guards that are not the redirection's own, and what counts the packets that get past.

use super::{RedirectError, Redirected};
use crate::args::{Args, Redirect};
use crate::bypass_counter::{self, BypassCounter, BypassMetric};
use crate::route_guard::{self, RouteGuard, RouteGuardMetrics};

/// That the guards that are asked for go with the redirection.
pub(crate) fn fits(args: &Args) -> Result<(), RedirectError> {
    let guard = args.guard();
    match args.redirect {
        Redirect::Iptables if guard.egress => Err(RedirectError::Guard { guard }),
        Redirect::Ebpf if !guard.egress => {
            tracing::warn!(
                %guard,
                "pods' packets to the metadata service are not looked at: all but TCP connects can get there"
            );
            Ok(())
        }
        Redirect::Ebpf | Redirect::Iptables => Ok(()),
    }
}

/// Puts the route guard there if it is wanted, and away what an earlier agent left if it is not.
pub(crate) fn with_route_guard(
    args: &Args,
    redirected: Redirected,
) -> Result<Redirected, RedirectError> {
    let guard = args.guard();
    if !guard.route {
        let removed = route_guard::cleanup()?;
        if removed > 0 {
            tracing::warn!(%guard, "the route guard of an earlier agent is removed");
        }
        return Ok(redirected);
    }
    let metrics = RouteGuardMetrics::new()?;
    let counted = metrics.collector();
    let route_guard = RouteGuard::install(metrics)?;
    tracing::info!("nothing that the node forwards goes to the metadata service");
    // Whoever has the firewall's rules removed wants the pods at the node's own service.
    let remove = args.redirect == Redirect::Iptables && args.iptables.iptables_remove;
    let Redirected {
        upkeep,
        mut metrics,
        ..
    } = redirected;
    metrics.push(Box::new(counted));
    Ok(Redirected {
        upkeep: Box::new(move |view, stop| {
            let guarding = route_guard.keep(stop.clone(), remove);
            Box::pin(async move {
                tokio::join!(upkeep(view, stop), guarding);
            })
        }),
        metrics,
        ..redirected
    })
}

/// Counts packets that a pod sent past the kernel programs, where these look at packets at all. A
/// kernel that cannot count them does not keep the agent from its work.
pub(crate) fn with_bypass_counter(
    args: &Args,
    mut redirected: Redirected,
) -> Result<Redirected, RedirectError> {
    if !args.guard().egress {
        match bypass_counter::cleanup() {
            Ok(true) => tracing::info!("an earlier agent's counter of packets is removed"),
            Ok(false) => {}
            Err(error) => tracing::warn!("an earlier agent's counter may be left: {error}"),
        }
        return Ok(redirected);
    }
    match BypassCounter::install() {
        Ok(counter) => {
            let metric = BypassMetric::new(counter)?;
            redirected.metrics.push(Box::new(metric));
        }
        Err(error) => {
            tracing::warn!("packets past the kernel programs will not be seen: {error}");
        }
    }
    Ok(redirected)
}
