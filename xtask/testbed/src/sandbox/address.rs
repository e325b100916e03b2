//! Addresses of nodes and pods.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Nodes are numbered from 1 to this: the addresses hold no more.
pub(super) const MAX_NODES: u32 = 150;
/// Pods of a node are numbered from 1 to this.
const MAX_PODS: u32 = 60_000;

const FABRIC_V6: [u16; 2] = [0xfd00, 0x10];

/// A node's address on the fabric.
pub(super) const fn node_v4(node: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, low_byte(node))
}

/// A node's address on the fabric.
pub(super) const fn node_v6(node: u32) -> Ipv6Addr {
    let [a, b] = FABRIC_V6;
    Ipv6Addr::new(a, b, 0, 0, 0, 0, 1, low_byte(node) as u16)
}

/// The prefix of a node's pods, as routes have it.
pub(super) fn pods_v4(node: u32) -> String {
    format!("10.{}.0.0/16", 100 + node)
}

/// The prefix of a node's pods, as routes have it.
pub(super) fn pods_v6(node: u32) -> String {
    format!("fd00:10:{node:x}::/48")
}

/// The address of a node's `pod`th pod, from 1; they begin again after many.
pub(super) fn pod_v4(node: u32, pod: u32) -> Ipv4Addr {
    let [_, _, high, low] = wrapped(pod).to_be_bytes();
    Ipv4Addr::new(10, low_byte(100 + node), high, low)
}

/// The address of a node's `pod`th pod, from 1; they begin again after many.
pub(super) fn pod_v6(node: u32, pod: u32) -> Ipv6Addr {
    let [a, b] = FABRIC_V6;
    let [_, _, high, low] = wrapped(pod).to_be_bytes();
    let pod = u16::from_be_bytes([high, low]);
    Ipv6Addr::new(a, b, low_byte(node) as u16, 0, 0, 0, 0, pod)
}

const fn wrapped(pod: u32) -> u32 {
    (pod - 1) % MAX_PODS + 1
}

const fn low_byte(number: u32) -> u8 {
    number.to_be_bytes()[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_picture() {
        assert_eq!(node_v4(2).to_string(), "10.0.1.2");
        assert_eq!(node_v6(2).to_string(), "fd00:10::1:2");
        assert_eq!(pod_v4(1, 1).to_string(), "10.101.0.1");
        assert_eq!(pod_v4(150, 300).to_string(), "10.250.1.44");
        assert_eq!(pod_v6(1, 300).to_string(), "fd00:10:1::12c");
        assert_eq!(pod_v4(1, MAX_PODS + 1), pod_v4(1, 1));
    }
}
