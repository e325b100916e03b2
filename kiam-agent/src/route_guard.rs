//! The route guard: nothing that the node forwards goes to the metadata service, whatever socket
//! it came from. It sees what is below the sockets that the kernel programs see: packets that a
//! pod wrote itself (`AF_PACKET`), or sent elsewhere by rules of its own namespace.
//!
//! ```text
//! rule   1: not iif lo lookup 169254          what came in by an interface
//! route  prohibit 169.254.169.254/32 table 169254
//! rule 100: lookup local                      only where a metadata address is the node's own
//! ```
//!
//! What the node itself sends has `iif lo`, and passes. Everything is marked as ours by the
//! routing protocol's number, stays when the agent is gone, and can be put there again at any time.

mod message;

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use prometheus::{IntCounterVec, Opts};
use tokio_util::sync::CancellationToken;

use crate::netlink::{Changes, News, Routing, has_ipv6};

use message::{Family, LOCAL_MOVED, PROTOCOL, is_local_route, is_local_rule, local_rule, question};

/// Routes are looked at this often; of rules the kernel tells.
const LOOK: Duration = Duration::from_secs(10);
/// And not more often than this, whatever changes.
const REST: Duration = Duration::from_secs(1);

/// Why the node's routing does not do its part.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} ({family}): {source}{}", hint(source))]
pub struct RouteGuardError {
    what: &'static str,
    family: &'static str,
    source: io::Error,
}

/// What helps against the commonest.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; the agent needs the capability NET_ADMIN",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "; the kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES, or the agent a --guard without route"
        }
        _ => "",
    }
}

/// `kiam_route_guard_checks_total`.
#[derive(Debug, Clone)]
pub struct RouteGuardMetrics(IntCounterVec);

impl RouteGuardMetrics {
    /// Counts from nothing.
    ///
    /// # Errors
    /// When the metric's name is no name.
    pub fn new() -> prometheus::Result<Self> {
        let opts = Opts::new(
            "kiam_route_guard_checks_total",
            "Looks at the agent's routing rules: intact, restored (another program had removed some) or failed.",
        );
        let checks = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in ["intact", "restored", "failed"] {
            checks.with_label_values(&[outcome]);
        }
        Ok(Self(checks))
    }

    /// To be registered.
    #[must_use]
    pub fn collector(&self) -> IntCounterVec {
        self.0.clone()
    }
}

/// The rules and routes, there. They stay when this is dropped.
#[derive(Debug)]
pub struct RouteGuard {
    routing: Routing,
    families: Vec<Family>,
    metrics: RouteGuardMetrics,
    changes: Changes,
}

impl RouteGuard {
    /// Puts there what is not there yet.
    ///
    /// # Errors
    /// When the kernel has no policy routing, or says no.
    pub fn install(metrics: RouteGuardMetrics) -> Result<Self, RouteGuardError> {
        let guard = Self {
            routing: open()?,
            families: families().collect(),
            metrics,
            changes: Changes::watch(News::RoutingRules),
        };
        guard.ensure()?;
        Ok(guard)
    }

    /// Looks after them until `stop`: puts back what others have removed. Then removes them, if
    /// it shall; else pods stay refused.
    pub async fn keep(mut self, stop: CancellationToken, remove: bool) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.changes.next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let outcome = match self.ensure() {
                Ok(0) => "intact",
                Ok(missing) => {
                    tracing::warn!(
                        missing,
                        "another program had removed rules of the route guard; they are back"
                    );
                    "restored"
                }
                Err(error) => {
                    tracing::error!("cannot look after the route guard: {error}");
                    "failed"
                }
            };
            self.metrics.0.with_label_values(&[outcome]).inc();
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(REST) => {}
            }
        }
        if remove {
            match self
                .families
                .iter()
                .try_for_each(|family| self::remove(&self.routing, *family).map(drop))
            {
                Ok(()) => tracing::info!("the route guard is removed"),
                Err(error) => tracing::warn!("the route guard stays: {error}"),
            }
        }
    }

    /// How many things were missing, and are there now.
    fn ensure(&self) -> Result<usize, RouteGuardError> {
        let each = self.families.iter();
        each.map(|family| ensure(&self.routing, *family)).sum()
    }
}

/// Removes all that a route guard leaves. Tells how many rules and routes there were.
///
/// # Errors
/// When the kernel says no.
pub fn cleanup() -> Result<usize, RouteGuardError> {
    let routing = open()?;
    families().map(|family| remove(&routing, family)).sum()
}

fn open() -> Result<Routing, RouteGuardError> {
    Routing::open().map_err(|source| RouteGuardError {
        what: "talk to the kernel about routing",
        family: "netlink",
        source,
    })
}

fn families() -> impl Iterator<Item = Family> {
    let v6 = has_ipv6().then_some(Family::V6);
    [Some(Family::V4), v6].into_iter().flatten()
}

fn failed(what: &'static str, family: Family) -> impl FnOnce(io::Error) -> RouteGuardError {
    let family = family.as_label();
    move |source| RouteGuardError {
        what,
        family,
        source,
    }
}

/// Puts there what is missing: first what refuses, then what leads to it.
fn ensure(routing: &Routing, family: Family) -> Result<usize, RouteGuardError> {
    let route = RouteNetlinkMessage::NewRoute(message::route(family));
    let rule = RouteNetlinkMessage::NewRule(message::rule(family));
    let mut missing = add(routing, route).map_err(failed("add the refusing route", family))?;
    missing += add(routing, rule).map_err(failed("add the rule that leads to it", family))?;
    let moved = move_local(routing, family);
    missing += moved.map_err(failed("move the rule of the node's own addresses", family))?;
    Ok(missing)
}

/// What the node's own addresses are comes first in every node's rules: where one of them is the
/// metadata service's, ours would never be reached.
fn move_local(routing: &Routing, family: Family) -> io::Result<usize> {
    let own = match routing.get(RouteNetlinkMessage::GetRoute(question(family))) {
        Ok(answers) => answers.iter().any(is_local_route),
        // There is no way there at all.
        Err(_) => false,
    };
    if !own || !has_local_rule(routing, family, 0)? {
        return Ok(0);
    }
    let moved = local_rule(family, LOCAL_MOVED, Some(PROTOCOL));
    add(routing, RouteNetlinkMessage::NewRule(moved))?;
    // Whoever put it there: of those that fit, the kernel takes the first.
    let usual = local_rule(family, 0, None);
    delete(routing, RouteNetlinkMessage::DelRule(usual))
}

/// First what leads there, then what refuses.
fn remove(routing: &Routing, family: Family) -> Result<usize, RouteGuardError> {
    let rule = RouteNetlinkMessage::DelRule(message::rule(family));
    let route = RouteNetlinkMessage::DelRoute(message::route(family));
    let mut removed = delete(routing, rule).map_err(failed("remove the rule", family))?;
    removed += delete(routing, route).map_err(failed("remove the route", family))?;
    let back = move_local_back(routing, family);
    removed += back.map_err(failed(
        "move the rule of the node's own addresses back",
        family,
    ))?;
    Ok(removed)
}

fn move_local_back(routing: &Routing, family: Family) -> io::Result<usize> {
    if !has_local_rule(routing, family, LOCAL_MOVED)? {
        return Ok(0);
    }
    let usual = local_rule(family, 0, Some(RouteProtocol::Kernel));
    add(routing, RouteNetlinkMessage::NewRule(usual))?;
    let moved = local_rule(family, LOCAL_MOVED, Some(PROTOCOL));
    delete(routing, RouteNetlinkMessage::DelRule(moved))
}

/// Whether the rule of the node's own addresses is at a priority; elsewhere than at the usual one
/// only ours counts.
fn has_local_rule(routing: &Routing, family: Family, priority: u32) -> io::Result<bool> {
    let rules = routing.dump(RouteNetlinkMessage::GetRule(message::all(family)))?;
    Ok(rules.iter().any(|rule| is_local_rule(rule, priority)))
}

/// 1 if it was not there.
fn add(routing: &Routing, message: RouteNetlinkMessage) -> io::Result<usize> {
    match routing.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(1),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(0),
        Err(error) => Err(error),
    }
}

/// 1 if it was there.
fn delete(routing: &Routing, message: RouteNetlinkMessage) -> io::Result<usize> {
    match routing.change(message, 0) {
        Ok(()) => Ok(1),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(0),
        Err(error) => Err(error),
    }
}
