//! The rules and routes, in the kernel's words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// The table of ours. A number that no program is known to use.
const TABLE: u32 = 169_254;
/// The priority of our rule: behind what the node's own addresses are, before all else (AWS' own
/// plugin begins at 512, Cilium at 9).
const PRIORITY: u32 = 1;
/// Where that rule is moved that comes first. Cilium, too, moves it there.
pub(super) const LOCAL_MOVED: u32 = 100;
/// By which our rules and routes are known. Not among `/etc/iproute2/rt_protos`.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(169);
/// `RT_TABLE_LOCAL`
const LOCAL: u8 = 255;

/// IPv4 or IPv6.
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

    /// The metadata service's address.
    const fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
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

/// The metadata service's address, as a question for the way there.
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
    // The whole selector is inverted, so that it must not name the address as well.
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

/// A question for all rules.
pub(super) fn all(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.number();
    rule
}

/// Whether a rule is `lookup local`, for everything, at a priority.
pub(super) fn is_local_rule(message: &RouteNetlinkMessage, priority: u32) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = message else {
        return false;
    };
    // The kernel leaves out a priority of zero.
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

/// Whether the way somewhere ends at the node itself.
pub(super) fn is_local_route(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local)
}
