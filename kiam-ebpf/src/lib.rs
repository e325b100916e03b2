//! What the kernel programs and the agent say to each other: the layouts of the maps, and the
//! addresses of the metadata service. Defined once, used by both sides.
//!
//! Numbers from packets and sockets are kept as they are there, in network byte order; fields
//! that are say so.

#![cfg_attr(target_arch = "bpf", no_std)]

/// The names of the programs, as the agent finds them in the object.
pub mod programs {
    /// `cgroup/connect4`: redirects.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6`: redirects sockets of the IPv6 family.
    pub const CONNECT6: &str = "connect6";
    /// `cgroup/getpeername4`: gives the application the address that it asked for.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6`.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// `cgroup_skb/egress`: lets nothing else out to the metadata service, and notes who calls.
    pub const GUARD: &str = "guard";
}

/// The names of the maps, as the agent finds them in the object. The kernel shows 15 characters.
pub mod maps {
    /// One [`Config`](super::Config).
    pub const CONFIG: &str = "CONFIG";
    /// [`Caller`](super::Caller) → [`Attestation`](super::Attestation).
    pub const ATTESTATIONS: &str = "ATTESTATIONS";
    /// How many notes the guard has made, by [`bucket`](super::bucket).
    pub const NOTED: &str = "NOTED";
    /// How many of them the agent has taken out, by [`bucket`](super::bucket).
    pub const TAKEN: &str = "TAKEN";
    /// A count for each [`Hook`](super::Hook) and [`Verdict`](super::Verdict), on each CPU.
    pub const VERDICTS: &str = "VERDICTS";
    /// A socket's fate since it connected, kept with the socket.
    pub const SOCKETS: &str = "SOCKETS";

    /// The id of a `hostNetwork` pod's cgroup → one of [`host_pod`](super::host_pod).
    pub const HOST_PODS: &str = "HOST_PODS";
    /// How many connections from before the programs have been closed.
    pub const CLOSED: &str = "CLOSED";
    /// A ring buffer of [`Event`](super::Event)s. It ends with the agent that loaded it.
    pub const EVENTS: &str = "EVENTS";
    /// The key of the tokens that agents give, once there is one.
    pub const TOKEN_KEY: &str = "TOKEN_KEY";

    /// A map that outlives the agent. What is in it has a version: agents and programs of the same one
    /// share the map, others each have their own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Kept {
        /// One of the names above.
        pub name: &'static str,
        /// Another one whenever a key or value, or what it means, is another.
        pub version: u32,
        /// A key, in bytes.
        pub key: usize,
        /// A value, in bytes; on one CPU.
        pub value: usize,
        /// How many there may be. Zero where the kernel has no bound.
        pub entries: usize,
    }

    /// All of them.
    pub const KEPT: [Kept; 9] = [
        Kept {
            name: CONFIG,
            version: super::LAYOUT,
            key: 4,
            value: size_of::<super::Config>(),
            entries: 1,
        },
        Kept {
            name: ATTESTATIONS,
            version: 1,
            key: size_of::<super::Caller>(),
            value: size_of::<super::Attestation>(),
            entries: super::MAX_ATTESTATIONS as usize,
        },
        Kept {
            name: NOTED,
            version: 1,
            key: 4,
            value: 8,
            entries: super::BUCKETS as usize,
        },
        Kept {
            name: TAKEN,
            version: 1,
            key: 4,
            value: 8,
            entries: super::BUCKETS as usize,
        },
        Kept {
            name: VERDICTS,
            version: super::LAYOUT,
            key: 4,
            value: 8,
            entries: super::VERDICTS,
        },
        Kept {
            name: SOCKETS,
            version: 1,
            key: 4,
            value: 4,
            entries: 0,
        },
        Kept {
            name: HOST_PODS,
            version: 1,
            key: 8,
            value: 4,
            entries: super::MAX_HOST_PODS as usize,
        },
        Kept {
            name: CLOSED,
            version: 1,
            key: 4,
            value: 8,
            entries: 1,
        },
        Kept {
            name: TOKEN_KEY,
            version: 1,
            key: 4,
            value: super::TOKEN_KEY_BYTES,
            entries: 1,
        },
    ];
}

/// The IPv4 address of the metadata service, in network byte order.
pub const METADATA_V4: u32 = u32::from_ne_bytes([169, 254, 169, 254]);
/// The IPv6 address of the metadata service, `fd00:ec2::254`, as four words in network byte order.
pub const METADATA_V6: [u32; 4] = [
    u32::from_ne_bytes([0xfd, 0x00, 0x0e, 0xc2]),
    0,
    0,
    u32::from_ne_bytes([0, 0, 0x02, 0x54]),
];
/// What stands before an IPv4 address in one of IPv6 that maps it: `::ffff:0:0/96`.
pub const MAPPED_PREFIX: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];
/// The port of the metadata service, in network byte order.
pub const METADATA_PORT: u16 = u16::from_ne_bytes(80_u16.to_be_bytes());

/// The name of the program's constant that holds another address whose port 80 is redirected, in
/// network byte order: where containers' SDKs ask. [`METADATA_V4`] if there is none.
pub const CONTAINER_V4: &str = "CONTAINER_V4";

/// The name of the program's constant that says which decisions become [`Event`]s: one of
/// [`event_level`].
pub const EVENT_LEVEL: &str = "EVENT_LEVEL";

/// Which decisions become [`Event`]s.
pub mod event_level {
    /// None.
    pub const OFF: u32 = 0;
    /// Refusals: [`Verdict::is_refusal`](super::Verdict::is_refusal).
    pub const REFUSED: u32 = 1;
    /// All.
    pub const ALL: u32 = 2;
}

/// Size of the ring buffer of [`Event`]s, in bytes: a power of two, and whole pages.
pub const EVENTS_SIZE: u32 = 128 * 1024;

/// The version of [`Config`] and of the counts of verdicts. A planted one is the next version's, for tests
/// of what becomes of a node that goes from the one to the other.
pub const LAYOUT: u32 = if cfg!(feature = "planted-next-layout") {
    2
} else {
    1
};

/// Connections to the agent that may be under way on a node, from SYN to the agent's reading of
/// who it is. When there are more the newest are refused: none is ever pushed out by another.
pub const MAX_ATTESTATIONS: u32 = 32_768;
/// Of these, how many a pod or container may have: it takes 128 of them to use up all.
pub const MAX_PER_SHARE: u32 = 256;
/// Below the cgroup of all pods, the level by which notes are counted. The pod, or with the class
/// of service that has no cgroup of its own, the container: never one that these have made.
pub const SHARE_LEVEL: i32 = 2;
/// How deep the cgroup of all pods may be: a node may itself be in a container.
pub const MAX_PODS_LEVEL: i32 = 16;
/// An attestation that is older gives way to another cgroup's of the same address and port, and is
/// swept out once no connection waits to be accepted: its connection never came about. By then a SYN
/// has been sent four times.
pub const ATTESTATION_LIFE_NANOS: u64 = 10_000_000_000;

/// The length of the key in [`maps::TOKEN_KEY`].
pub const TOKEN_KEY_BYTES: usize = 32;

/// How many counts of notes there are: see [`bucket`].
pub const BUCKETS: u32 = 4096;

/// Where the notes of a share are counted. Ids are given in order, so that the cgroups of a node
/// seldom have one in common.
#[must_use]
pub const fn bucket(share: u64) -> u32 {
    (share % BUCKETS as u64) as u32
}

/// Where the agent is. As long as `layout` is not [`LAYOUT`], everything is refused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT`], written last in meaning: a map that was never filled has zero here.
    pub layout: u32,
    /// An address of the node that pods reach, in network byte order.
    pub host_v4: u32,
    /// The agent's port there, in network byte order.
    pub port: u16,
    /// One of [`host_network`]: what becomes of `hostNetwork` pods that are not in
    /// [`maps::HOST_PODS`].
    pub host_network: u16,
    /// One of [`egress`]: what becomes of packets to the metadata service.
    pub egress: u16,
    /// Zero.
    pub reserved: u16,
    /// The cookie of the node's own network namespace, by which sockets of `hostNetwork` pods are
    /// known.
    pub host_netns_cookie: u64,
    /// The id of the cgroup that all pods are in, which the programs are attached to.
    pub pods_cgroup: u64,
    /// What an earlier version knows nothing of.
    #[cfg(feature = "planted-next-layout")]
    pub planted: [u64; 3],
}

impl Config {
    /// As it is in a map that was never filled.
    pub const NONE: Self = Self {
        layout: 0,
        host_v4: 0,
        port: 0,
        host_network: 0,
        egress: 0,
        reserved: 0,
        host_netns_cookie: 0,
        pods_cgroup: 0,
        #[cfg(feature = "planted-next-layout")]
        planted: [0; 3],
    };
}

/// What becomes of a packet that a pod sends to the metadata service.
pub mod egress {
    /// It is dropped.
    pub const GUARDED: u16 = 0;
    /// It goes there.
    pub const OPEN: u16 = 1;
}

/// What becomes of a connect to the metadata service from the node's own network namespace.
pub mod host_network {
    /// It goes there.
    pub const REAL: u16 = 0;
    /// It is refused.
    pub const REFUSED: u16 = 1;
}

/// What becomes of one `hostNetwork` pod's connects to the metadata service.
pub mod host_pod {
    /// They go there.
    pub const REAL: u32 = 1;
    /// They go to the agent, as other pods' do.
    pub const AGENT: u32 = 2;
}

/// `hostNetwork` pods of a node that something else becomes of than of the rest.
pub const MAX_HOST_PODS: u32 = 1024;

/// What identifies a connection to the agent on the agent's side: its other end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Source address, in network byte order.
    pub address: u32,
    /// Source port, in network byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// The kernel's word on who made a connection to the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attestation {
    /// The cgroup of the connecting socket.
    pub cgroup: u64,
    /// The cgroup among whose notes this one is counted: a pod's or a container's. Those that
    /// they may make themselves are below.
    pub share: u64,
    /// When its SYN left, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
}

/// One decision of a program.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// A [`Hook`], by its number.
    pub hook: u32,
    /// A [`Verdict`], by its number.
    pub verdict: u32,
    /// The id of the cgroup that the decision is about.
    pub cgroup: u64,
}

/// Where a program is attached that counts what it does.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `cgroup/connect4`.
    Connect4 = 0,
    /// `cgroup/connect6`.
    Connect6 = 1,
    /// `cgroup_skb/egress`.
    Egress = 2,
}

impl Hook {
    /// All, in the order of their indexes.
    pub const ALL: [Self; 3] = [Self::Connect4, Self::Connect6, Self::Egress];

    /// For metrics.
    #[must_use]
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Egress => "egress",
        }
    }
}

/// What a program did with a connect or a packet.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A connect to the metadata service was sent to the agent.
    Redirected = 0,
    /// A connect to the metadata service that is not TCP to port 80 was refused.
    ConnectRefused = 1,
    /// A connect was refused because there is no configuration.
    Unconfigured = 2,
    /// A socket of a `hostNetwork` pod was let through to the metadata service.
    HostNetwork = 3,
    /// A packet to the metadata service was dropped.
    PacketDropped = 4,
    /// A connection to the agent was attested.
    Attested = 5,
    /// A SYN to the agent was dropped that no TCP socket of that address and port sent.
    Forged = 6,
    /// A SYN to the agent was dropped because another cgroup's, from the same address and port,
    /// has not been taken out yet.
    Contested = 7,
    /// A SYN to the agent was dropped because too many of its pod or container are under way.
    Flooding = 8,
    /// A SYN to the agent was dropped because too many of all pods are under way.
    Overflow = 9,
    /// What an earlier version knows nothing of.
    #[cfg(feature = "planted-next-layout")]
    Planted = 10,
}

impl Verdict {
    /// All, in the order of their indexes.
    pub const ALL: [Self; if cfg!(feature = "planted-next-layout") {
        11
    } else {
        10
    }] = [
        Self::Redirected,
        Self::ConnectRefused,
        Self::Unconfigured,
        Self::HostNetwork,
        Self::PacketDropped,
        Self::Attested,
        Self::Forged,
        Self::Contested,
        Self::Flooding,
        Self::Overflow,
        #[cfg(feature = "planted-next-layout")]
        Self::Planted,
    ];

    /// Whether a connect or a packet went nowhere by it.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::Redirected | Self::HostNetwork | Self::Attested)
    }

    /// For metrics.
    #[must_use]
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::ConnectRefused => "connect_refused",
            Self::Unconfigured => "unconfigured",
            Self::HostNetwork => "host_network",
            Self::PacketDropped => "packet_dropped",
            Self::Attested => "attested",
            Self::Forged => "forged",
            Self::Contested => "contested",
            Self::Flooding => "flooding",
            Self::Overflow => "overflow",
            #[cfg(feature = "planted-next-layout")]
            Self::Planted => "planted",
        }
    }
}

/// How many counts there are.
pub const VERDICTS: usize = Hook::ALL.len() * Verdict::ALL.len();

/// Where a hook's count of a verdict is.
#[must_use]
pub const fn count_index(hook: Hook, verdict: Verdict) -> u32 {
    hook as u32 * Verdict::ALL.len() as u32 + verdict as u32
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "the trait promises what repr(C) and the fields' types show"
)]
mod user {
    use super::{Attestation, Caller, Config};

    // SAFETY: repr(C), integers only, no padding (checked below): any bytes are a value, and all
    // bytes are initialised.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Caller {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Attestation {}
}

#[cfg(not(feature = "planted-next-layout"))]
const _: () = assert!(size_of::<Config>() == 4 + 4 + 2 + 6 + 8 + 8);
const _: () = assert!(size_of::<Caller>() == 4 + 2 + 2);
const _: () = assert!(size_of::<Attestation>() == 3 * 8);
const _: () = assert!(MAX_PER_SHARE * 100 < MAX_ATTESTATIONS);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_are_the_metadata_service_s() {
        assert_eq!(
            Ipv4Addr::from(METADATA_V4.to_ne_bytes()),
            Ipv4Addr::new(169, 254, 169, 254)
        );
        let v6: Vec<u8> = METADATA_V6
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let v6: [u8; 16] = v6.try_into().unwrap();
        assert_eq!(
            Ipv6Addr::from(v6),
            "fd00:ec2::254".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(u16::from_be(METADATA_PORT), 80);
    }

    #[test]
    #[cfg(not(feature = "planted-next-layout"))]
    fn what_is_in_a_kept_map_is_its_version_s() {
        // Something else in it is a new version, and not another line here.
        let known = [
            (maps::CONFIG, 1, 4, 32, 1),
            (maps::ATTESTATIONS, 1, 8, 24, 32_768),
            (maps::NOTED, 1, 4, 8, 4096),
            (maps::TAKEN, 1, 4, 8, 4096),
            (maps::VERDICTS, 1, 4, 8, 30),
            (maps::SOCKETS, 1, 4, 4, 0),
            (maps::HOST_PODS, 1, 8, 4, 1024),
            (maps::CLOSED, 1, 4, 8, 1),
            (maps::TOKEN_KEY, 1, 4, 32, 1),
        ];
        let kept = maps::KEPT.map(|map| (map.name, map.version, map.key, map.value, map.entries));
        assert_eq!(kept, known);
    }

    #[test]
    fn every_hook_s_verdict_has_a_count_of_its_own() {
        let indexes = Hook::ALL
            .into_iter()
            .flat_map(|hook| Verdict::ALL.map(|verdict| count_index(hook, verdict) as usize));
        assert!(indexes.eq(0..VERDICTS));
    }

    #[test]
    fn cgroups_made_one_after_another_are_counted_apart() {
        assert_ne!(bucket(1 << 40), bucket((1 << 40) + 1));
    }
}
