//! Netlink messages for the rules and routes.

use std::net::IpAddr;

use kiam_common::metadata_address::{METADATA_V4, METADATA_V6};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// Routing table of the guard: a number that no known program uses.
const TABLE: u32 = 169_254;
/// Priority of the guard's rule: after the node's addresses, before all others (the plugin of AWS
/// begins at 512, Cilium at 9).
const PRIORITY: u32 = 1;
/// Priority that the rule of the node's addresses is moved to; Cilium moves it there too.
pub(super) const LOCAL_MOVED: u32 = 100;
/// Mark of the guard's rules and routes. Not among `/etc/iproute2/rt_protos`.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(169);
/// `RT_TABLE_LOCAL`
const LOCAL: u8 = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn as_label(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Returns the metadata service's address.
    const fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(METADATA_V4),
            Self::V6 => IpAddr::V6(METADATA_V6),
        }
    }

    const fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// `prohibit ADDRESS table 169254`
pub(super) fn route(family: Family) -> RouteMessage {
    let mut route = question(family);
    route.header.kind = RouteType::Prohibit;
    route.header.protocol = PROTOCOL;
    route.attributes.push(RouteAttribute::Table(TABLE));
    route
}

/// Returns a query for the route to the metadata service.
pub(super) fn question(family: Family) -> RouteMessage {
    let (to, bits) = match family.metadata() {
        IpAddr::V4(to) => (RouteAddress::Inet(to), 32),
        IpAddr::V6(to) => (RouteAddress::Inet6(to), 128),
    };
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family.number(),
        destination_prefix_length: bits,
        ..RouteHeader::default()
    };
    route.attributes.push(RouteAttribute::Destination(to));
    route
}

/// `not iif lo lookup 169254 priority 1`
pub(super) fn rule(family: Family) -> RuleMessage {
    let mut rule = all(family);
    rule.header.action = RuleAction::ToTable;
    // `invert` applies to the whole selector, so the rule must not select by address too.
    rule.header.flags = RuleFlags::Invert;
    rule.attributes = vec![
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    rule
}

/// `lookup local`
pub(super) fn local_rule(
    family: Family,
    priority: u32,
    protocol: Option<RouteProtocol>,
) -> RuleMessage {
    let mut rule = all(family);
    rule.header.action = RuleAction::ToTable;
    rule.header.table = LOCAL;
    rule.attributes = vec![RuleAttribute::Priority(priority)];
    rule.attributes
        .extend(protocol.map(RuleAttribute::Protocol));
    rule
}

/// Returns a query for all rules.
pub(super) fn all(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.number();
    rule
}

/// Returns whether a rule is `lookup local`, without a selector, at a priority.
pub(super) fn is_local_rule(message: &RouteNetlinkMessage, priority: u32) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = message else {
        return false;
    };
    // The kernel omits a priority of zero.
    let own = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
    let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
    let selects = rule.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::FwMark(_)
                | RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
        )
    });
    rule.header.table == LOCAL
        && rule.header.action == RuleAction::ToTable
        && own.unwrap_or_default() == priority
        && !selects
        && (priority == 0 || ours)
}

/// Returns whether a route ends at the node itself.
pub(super) fn is_local_route(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local)
}
