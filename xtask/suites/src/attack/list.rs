//! The attempts, and the sign that one has succeeded.

/// An attempt to reach the node's metadata service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    pub(super) name: &'static str,
    /// Arguments of attacks.py.
    pub(super) words: &'static [&'static str],
    /// True if it reaches the service where nothing guards it. An attempt that fails without the
    /// guard is still tried: with the guard it may succeed.
    pub(super) works: bool,
}

const fn works(name: &'static str, words: &'static [&'static str]) -> Reach {
    Reach {
        name,
        words,
        works: true,
    }
}

/// All attempts.
pub(super) const REACH: &[Reach] = &[
    works("TCP, IPv4", &["tcp", "v4"]),
    works("TCP, v4-mapped", &["tcp", "mapped"]),
    works("TCP, IPv6", &["tcp", "v6"]),
    works("TCP, another port", &["tcp", "v4", "443"]),
    works("TCP, another port, IPv6", &["tcp", "v6", "443"]),
    works("MPTCP", &["mptcp", "v4"]),
    works("MPTCP, IPv6", &["mptcp", "v6"]),
    works("TCP Fast Open", &["fast_open", "v4"]),
    works("TCP Fast Open, mapped", &["fast_open", "mapped"]),
    works("bind before connect", &["bind_first", "v4"]),
    works("connect again and again", &["again", "v4"]),
    works("io_uring", &["by_ring", "v4"]),
    works("io_uring, mapped", &["by_ring", "mapped"]),
    works("own cgroup, made after the socket", &["moved", "v4"]),
    works("a socket passed by fd", &["passed_on", "v4"]),
    works("own firewall's DNAT", &["own_dnat", "v4"]),
    works("SO_MARK, SO_BINDTODEVICE", &["marked", "v4"]),
    works("TCP, IP options", &["optioned", "v4"]),
    works("UDP, IP options", &["udp_optioned", "v4"]),
    works("UDP", &["udp", "v4"]),
    works("UDP, v4-mapped", &["udp", "mapped"]),
    works("UDP, IPv6", &["udp", "v6"]),
    works("UDP, port 53", &["udp", "v4", "53"]),
    works("UDP, connected", &["udp_connected", "v4"]),
    works("ICMP", &["ping", "v4"]),
    works("ICMPv6", &["ping", "v6"]),
    works("raw IP, own header", &["raw", "v4"]),
    works("raw IPv6, own header", &["raw", "v6"]),
    works("AF_PACKET", &["frame", "v4"]),
    works("AF_PACKET, IPv6", &["frame", "v6"]),
    // The node takes no source route (accept_source_route), and the guard none either.
    Reach {
        name: "loose source route",
        words: &["source_routed", "v4"],
        works: false,
    },
    Reach {
        name: "user and network namespace",
        words: &["new_namespaces", "v4"],
        works: false,
    },
    Reach {
        name: "its address on own loopback",
        words: &["own_nat", "v4"],
        works: false,
    },
];
