//! Messages of nf_tables for the table, chain, counter and rules: netlink attributes as in
//! `linux/netfilter/nf_tables.h` and `nfnetlink.h`. Numbers in attributes are big-endian.

use std::net::IpAddr;

use kiam_common::metadata_address::{METADATA_V4, METADATA_V6};

use crate::netlink::{NESTED, messages, value};

/// `NFNL_SUBSYS_NFTABLES`
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = NFTABLES << 8;
const DEL_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
const DEL_RULE: u16 = NFTABLES << 8 | 8;
const NEW_OBJECT: u16 = NFTABLES << 8 | 18;
const GET_OBJECT: u16 = NFTABLES << 8 | 19;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE` and `NLM_F_APPEND`
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `struct nfgenmsg`
const FAMILY_BYTES: usize = 4;

/// `NFPROTO_INET`: a table for both families.
const INET: u8 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// A table name that no other program uses.
const TABLE: &str = "kiam";
const CHAIN: &str = "from_pods";
const COUNTER: &str = "metadata_service";
/// `NFT_OBJECT_COUNTER`
const COUNTER_KIND: u32 = 1;
/// `NF_INET_PRE_ROUTING`: packets that arrived on an interface, before they are routed.
const PRE_ROUTING: u32 = 0;
/// Before `NF_IP_PRI_RAW` (-300): packets are counted before any other rule changes them.
const PRIORITY: i32 = -310;
/// The loopback interface, in every network namespace (`LOOPBACK_IFINDEX` of `net/flow.h`).
const LOOPBACK: u32 = 1;
/// `NFT_REG_1`
const REGISTER: u32 = 1;

/// Addresses of the metadata service.
const METADATA: [IpAddr; 2] = [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)];

/// A message: a header, a family and attributes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, family: u8, subsystem: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family, 0]);
        bytes.extend(subsystem.to_be_bytes());
        Self { bytes }
    }

    fn table(kind: u16, flags: u16) -> Self {
        Self::new(kind, flags, INET, 0)
    }

    fn with(mut self, attributes: &[u8]) -> Self {
        self.bytes.extend(attributes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// Loads a property of the packet: `NFTA_META_DREG`, `NFTA_META_KEY`.
fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

/// Continues if the loaded value equals this one, or differs: `NFTA_CMP_SREG`, `_OP`, `_DATA`.
fn compare(equal: bool, value: &[u8]) -> Vec<u8> {
    let value = nested(3, &[attribute(1, value)]);
    let operation = number(2, u32::from(!equal));
    expression("cmp", &[number(1, REGISTER), operation, value])
}

/// `meta nfproto FAMILY IP daddr ADDRESS iif != lo counter name "metadata_service"`
fn rule(address: IpAddr) -> Vec<u8> {
    /// `NFT_META_IIF` and `NFT_META_NFPROTO`
    const INTERFACE: u32 = 4;
    const FAMILY: u32 = 15;
    /// `NFT_PAYLOAD_NETWORK_HEADER`
    const NETWORK: u32 = 1;
    // Offset of the destination in the headers of IPv4 and IPv6.
    let (family, offset, bytes) = match address {
        IpAddr::V4(address) => (IPV4, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (IPV6, 24, address.octets().to_vec()),
    };
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    let destination = [
        number(1, REGISTER),
        number(2, NETWORK),
        number(3, offset),
        number(4, length),
    ];
    let expressions = [
        meta(FAMILY),
        compare(true, &[family]),
        expression("payload", &destination),
        compare(true, &bytes),
        meta(INTERFACE),
        compare(false, &LOOPBACK.to_ne_bytes()),
        expression("objref", &[number(1, COUNTER_KIND), text(2, COUNTER)]),
    ];
    Message::table(NEW_RULE, CREATE | APPEND | ACK)
        .with(&text(1, TABLE))
        .with(&text(2, CHAIN))
        .with(&nested(4, &expressions))
        .finish()
}

/// Wraps messages into a transaction.
fn batch(messages: &[Vec<u8>]) -> Vec<u8> {
    let edge = |kind| Message::new(kind, 0, 0, NFTABLES).finish();
    [edge(BATCH_BEGIN), messages.concat(), edge(BATCH_END)].concat()
}

/// Creates what is missing. An existing counter keeps its value; rules are replaced. Returns the
/// bytes, and the number of messages that are acknowledged.
pub(super) fn install() -> (Vec<u8>, usize) {
    let made = CREATE | ACK;
    let table = Message::table(NEW_TABLE, made).with(&text(1, TABLE));
    let hook = [number(1, PRE_ROUTING), number(2, PRIORITY.cast_unsigned())];
    let chain = Message::table(NEW_CHAIN, made)
        .with(&text(1, TABLE))
        .with(&text(3, CHAIN))
        .with(&nested(4, &hook))
        .with(&text(7, "filter"));
    let counter = Message::table(NEW_OBJECT, made)
        .with(&text(1, TABLE))
        .with(&text(2, COUNTER))
        .with(&number(3, COUNTER_KIND))
        .with(&nested(4, &[]));
    let old_rules = Message::table(DEL_RULE, ACK)
        .with(&text(1, TABLE))
        .with(&text(2, CHAIN));
    let mut messages: Vec<_> = [table, chain, counter, old_rules]
        .map(Message::finish)
        .into();
    messages.extend(METADATA.map(rule));
    (batch(&messages), messages.len())
}

/// Removes the table and its contents.
pub(super) fn remove() -> (Vec<u8>, usize) {
    let table = Message::table(DEL_TABLE, ACK).with(&text(1, TABLE));
    (batch(&[table.finish()]), 1)
}

/// Requests the counter.
pub(super) fn read() -> Vec<u8> {
    Message::table(GET_OBJECT, ACK)
        .with(&text(1, TABLE))
        .with(&text(2, COUNTER))
        .with(&number(3, COUNTER_KIND))
        .finish()
}

/// A reply of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Result of a message that requested an acknowledgment: 0, or a negative `errno`.
    Done(i32),
    /// The value of the counter, in packets.
    Packets(u64),
}

/// Parses a datagram from the kernel.
pub(super) fn parse(datagram: &[u8]) -> Vec<Reply> {
    /// `NLMSG_ERROR`
    const ERROR: u16 = 2;
    /// `NFTA_OBJ_DATA` and `NFTA_COUNTER_PACKETS`
    const DATA: u16 = 4;
    const PACKETS: u16 = 2;
    let mut replies = Vec::new();
    for (kind, body) in messages(datagram) {
        if kind == ERROR {
            let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
            replies.extend(code.map(Reply::Done));
        } else if kind == NEW_OBJECT {
            let attributes = body.get(FAMILY_BYTES..).unwrap_or_default();
            let packets = value(attributes, DATA).and_then(|data| value(data, PACKETS));
            let packets = packets.and_then(|bytes| bytes.first_chunk());
            replies.extend(packets.map(|bytes| Reply::Packets(u64::from_be_bytes(*bytes))));
        }
    }
    replies
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::messages::header;

    #[test]
    fn replies_of_the_kernel_are_parsed() {
        let done = |code: i32| {
            let mut bytes = [&36_u32.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0; 10]].concat();
            bytes.extend(code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        let packets = |count: u64| {
            let data = [attribute(1, &[0; 8]), attribute(2, &count.to_be_bytes())];
            Message::table(NEW_OBJECT, 0)
                .with(&text(1, TABLE))
                .with(&nested(4, &data))
                .finish()
        };
        let all = [done(-2), packets(77), done(0)].concat();
        let expected = [Reply::Done(-2), Reply::Packets(77), Reply::Done(0)];
        assert_eq!(parse(&all), expected);
    }

    #[test]
    fn messages_are_complete_and_aligned() {
        for (bytes, answered) in [install(), remove(), (read(), 1)] {
            let mut rest = &bytes[..];
            let mut asking = 0;
            while let Some((length, _)) = header(rest) {
                asking += usize::from(rest[6] & 4 != 0);
                rest = &rest[length..];
            }
            assert!(rest.is_empty());
            assert_eq!(asking, answered);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
