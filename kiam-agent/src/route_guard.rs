//! Route guard: policy routing that rejects packets which the node would forward to the metadata
//! service. It acts below the sockets that the kernel programs see: on packets that a pod wrote
//! itself (`AF_PACKET`), or redirected by rules in its network namespace.
//!
//! ```text
//! rule   1: not iif lo lookup 169254          packets that arrived on an interface
//! route  prohibit 169.254.169.254/32 table 169254
//! rule 100: lookup local                      only if a metadata address is one of the node's
//! ```
//!
//! Packets of the node itself have `iif lo`, and pass. Rules and routes of the guard are marked by
//! the number of their routing protocol. They stay when the agent is gone.

mod message;

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use prometheus::{IntCounterVec, Opts};
use tokio_util::sync::CancellationToken;

use crate::netlink::{Changes, Routing, Subject, has_ipv6};
use crate::reconcile::{self, Reconcile};
use message::{Family, LOCAL_MOVED, PROTOCOL, is_local_route, is_local_rule, local_rule, question};

/// Error of the route guard.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} ({family}): {source}{}", hint(source))]
pub struct RouteGuardError {
    what: &'static str,
    family: &'static str,
    source: io::Error,
}

/// Returns advice for the most common errors.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; the agent needs the capability NET_ADMIN",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "; use a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES, or a --guard without route"
        }
        _ => "",
    }
}

/// `kiam_route_guard_checks_total`.
#[derive(Debug, Clone)]
pub struct RouteGuardMetrics(IntCounterVec);

impl RouteGuardMetrics {
    /// Creates the counter, with all labels at zero.
    pub fn new() -> prometheus::Result<Self> {
        let opts = Opts::new(
            "kiam_route_guard_checks_total",
            "Checks of the agent's routing rules: intact, restored (another program had removed some) or failed.",
        );
        let checks = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in ["intact", "restored", "failed"] {
            checks.with_label_values(&[outcome]);
        }
        Ok(Self(checks))
    }

    /// Returns the collector to register.
    pub fn collector(&self) -> IntCounterVec {
        self.0.clone()
    }
}

/// The installed rules and routes. They stay when this value is dropped.
#[derive(Debug)]
pub struct RouteGuard {
    routing: Routing,
    families: Vec<Family>,
    metrics: RouteGuardMetrics,
    changes: Changes,
}

impl RouteGuard {
    /// Installs what is missing.
    pub fn install(metrics: RouteGuardMetrics) -> Result<Self, RouteGuardError> {
        let guard = Self {
            routing: open()?,
            families: families().collect(),
            metrics,
            changes: Changes::watch(Subject::RoutingRules),
        };
        guard.ensure()?;
        Ok(guard)
    }

    /// Keeps the rules in effect until `stop`, then removes them if `remove` is set; otherwise
    /// pods stay refused.
    pub async fn run(self, stop: CancellationToken, remove: bool) {
        reconcile::run(self, stop, remove).await;
    }

    /// Installs what is missing, and returns how many rules and routes that were.
    fn ensure(&self) -> Result<usize, RouteGuardError> {
        let each = self.families.iter();
        each.map(|family| ensure(&self.routing, *family)).sum()
    }
}

impl Reconcile for RouteGuard {
    async fn changed(&mut self) {
        self.changes.next().await;
    }

    async fn reconcile(&mut self) {
        let outcome = match self.ensure() {
            Ok(0) => "intact",
            Ok(missing) => {
                tracing::warn!(
                    missing,
                    "another program removed rules of the route guard; they are restored"
                );
                "restored"
            }
            Err(error) => {
                tracing::error!("cannot check the route guard: {error}");
                "failed"
            }
        };
        self.metrics.0.with_label_values(&[outcome]).inc();
    }

    async fn remove(&mut self) {
        let mut families = self.families.iter();
        match families.try_for_each(|family| remove(&self.routing, *family).map(drop)) {
            Ok(()) => tracing::info!("removed the route guard"),
            Err(error) => tracing::warn!("cannot remove the route guard: {error}"),
        }
    }
}

/// Removes all rules and routes of the guard, and returns how many there were.
pub fn cleanup() -> Result<usize, RouteGuardError> {
    let routing = open()?;
    families().map(|family| remove(&routing, family)).sum()
}

fn open() -> Result<Routing, RouteGuardError> {
    Routing::open().map_err(|source| RouteGuardError {
        what: "open a netlink socket for routing",
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

/// Installs what is missing: the rejecting route first, then the rule that leads to it.
fn ensure(routing: &Routing, family: Family) -> Result<usize, RouteGuardError> {
    let route = RouteNetlinkMessage::NewRoute(message::route(family));
    let rule = RouteNetlinkMessage::NewRule(message::rule(family));
    let mut missing = add(routing, route).map_err(failed("add the rejecting route", family))?;
    missing += add(routing, rule).map_err(failed("add the rule that leads to it", family))?;
    let moved = move_local(routing, family);
    missing += moved.map_err(failed("move the rule of the node's addresses", family))?;
    Ok(missing)
}

/// Moves the rule of the node's addresses behind the guard's if a metadata address is among these:
/// that rule comes first on every node, and would hide the guard's.
fn move_local(routing: &Routing, family: Family) -> io::Result<usize> {
    let own = match routing.get(RouteNetlinkMessage::GetRoute(question(family))) {
        Ok(answers) => answers.iter().any(is_local_route),
        // There is no route at all.
        Err(_) => false,
    };
    if !own || !has_local_rule(routing, family, 0)? {
        return Ok(0);
    }
    let moved = local_rule(family, LOCAL_MOVED, Some(PROTOCOL));
    add(routing, RouteNetlinkMessage::NewRule(moved))?;
    // Regardless of its protocol: the kernel deletes the first rule that matches.
    let usual = local_rule(family, 0, None);
    delete(routing, RouteNetlinkMessage::DelRule(usual))
}

/// Removes the rule first, then the route.
fn remove(routing: &Routing, family: Family) -> Result<usize, RouteGuardError> {
    let rule = RouteNetlinkMessage::DelRule(message::rule(family));
    let route = RouteNetlinkMessage::DelRoute(message::route(family));
    let mut removed = delete(routing, rule).map_err(failed("remove the rule", family))?;
    removed += delete(routing, route).map_err(failed("remove the route", family))?;
    let back = move_local_back(routing, family);
    removed += back.map_err(failed("move the rule of the node's addresses back", family))?;
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

/// Returns whether the rule of the node's addresses has a priority. Except at the usual one, only
/// the guard's own counts.
fn has_local_rule(routing: &Routing, family: Family, priority: u32) -> io::Result<bool> {
    let rules = routing.dump(RouteNetlinkMessage::GetRule(message::all(family)))?;
    Ok(rules.iter().any(|rule| is_local_rule(rule, priority)))
}

/// Returns 1 if it was added, and 0 if it existed.
fn add(routing: &Routing, message: RouteNetlinkMessage) -> io::Result<usize> {
    match routing.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(1),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns 1 if it was deleted, and 0 if it did not exist.
fn delete(routing: &Routing, message: RouteNetlinkMessage) -> io::Result<usize> {
    match routing.change(message, 0) {
        Ok(()) => Ok(1),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(0),
        Err(error) => Err(error),
    }
}
