//! Interface between the kernel programs and the agent: the layouts of the maps, and the addresses
//! of the metadata service.
//!
//! Numbers from packets and sockets are in network byte order, as the docs of their fields say.
#![warn(missing_docs)]
#![cfg_attr(target_arch = "bpf", no_std)]

mod verdict;

pub use verdict::{Hook, VERDICTS, Verdict, count_index};

/// Names of the programs in the object.
pub mod programs {
    /// `cgroup/connect4`: redirects connects of IPv4 sockets.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6`: redirects connects of IPv6 sockets.
    pub const CONNECT6: &str = "connect6";
    /// `cgroup/getpeername4`: returns the address that the application connected to.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6`: the same for IPv6 sockets.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// `cgroup_skb/egress`: drops packets to the metadata service, and attests connections to the
    /// agent.
    pub const GUARD: &str = "guard";
}

/// Names of the maps in the object. The kernel shows 15 characters.
///
/// A name is part of the path that a map is pinned at, which other versions of the agent use too:
/// it stays when a constant is renamed (docs/adr/0011-versions-of-maps.md).
pub mod maps {
    /// One [`Config`](super::Config).
    pub const CONFIG: &str = "CONFIG";
    /// [`Peer`](super::Peer) → [`Attestation`](super::Attestation).
    pub const ATTESTATIONS: &str = "ATTESTATIONS";
    /// Attestations that the guard has recorded, by [`bucket`](super::bucket).
    pub const RECORDED: &str = "NOTED";
    /// Attestations that the agent has consumed, by [`bucket`](super::bucket).
    pub const CONSUMED: &str = "TAKEN";
    /// A count for each [`Hook`](super::Hook) and [`Verdict`](super::Verdict), per CPU.
    pub const VERDICTS: &str = "VERDICTS";
    /// Disposition of a socket since its connect, stored with the socket.
    pub const SOCKETS: &str = "SOCKETS";

    /// Cgroup id of a `hostNetwork` pod → one of [`host_pod`](super::host_pod).
    pub const HOST_PODS: &str = "HOST_PODS";
    /// Number of connections older than the programs that were closed.
    pub const CLOSED: &str = "CLOSED";
    /// A ring buffer of [`Event`](super::Event)s. Not pinned: it ends with the agent that loaded
    /// it.
    pub const EVENTS: &str = "EVENTS";
    /// The key of IMDSv2 tokens, once an agent has made one.
    pub const TOKEN_KEY: &str = "TOKEN_KEY";

    /// A map that is pinned, and outlives the agent. Agents and programs that know the same version
    /// share the map; other versions have maps of their own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Pinned {
        /// One of the names above.
        pub name: &'static str,
        /// Changes whenever the layout or the meaning of a key or value does.
        pub version: u32,
        /// Size of a key, in bytes.
        pub key: usize,
        /// Size of a value, in bytes; for one CPU.
        pub value: usize,
        /// Maximum number of entries. Zero where the kernel has no limit.
        pub entries: usize,
    }

    /// All pinned maps.
    pub const PINNED: [Pinned; 9] = [
        Pinned {
            name: CONFIG,
            version: super::LAYOUT,
            key: 4,
            value: size_of::<super::Config>(),
            entries: 1,
        },
        Pinned {
            name: ATTESTATIONS,
            version: 1,
            key: size_of::<super::Peer>(),
            value: size_of::<super::Attestation>(),
            entries: super::MAX_ATTESTATIONS as usize,
        },
        Pinned {
            name: RECORDED,
            version: 1,
            key: 4,
            value: 8,
            entries: super::BUCKETS as usize,
        },
        Pinned {
            name: CONSUMED,
            version: 1,
            key: 4,
            value: 8,
            entries: super::BUCKETS as usize,
        },
        Pinned {
            name: VERDICTS,
            version: super::LAYOUT,
            key: 4,
            value: 8,
            entries: super::VERDICTS,
        },
        Pinned {
            name: SOCKETS,
            version: 1,
            key: 4,
            value: 4,
            entries: 0,
        },
        Pinned {
            name: HOST_PODS,
            version: 1,
            key: 8,
            value: 4,
            entries: super::MAX_HOST_PODS as usize,
        },
        Pinned {
            name: CLOSED,
            version: 1,
            key: 4,
            value: 8,
            entries: 1,
        },
        Pinned {
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
/// Prefix of IPv6 addresses that map IPv4 addresses: `::ffff:0:0/96`.
pub const MAPPED_PREFIX: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];
/// The port of the metadata service, in network byte order.
pub const METADATA_PORT: u16 = u16::from_ne_bytes(80_u16.to_be_bytes());

/// Name of the constant of the programs that holds a second address whose port 80 is redirected, in
/// network byte order: the address of `--container-credentials-address`. [`METADATA_V4`] if there
/// is none.
pub const CONTAINER_V4: &str = "CONTAINER_V4";

/// Name of the constant of the programs that selects the decisions that become [`Event`]s: one of
/// [`event_level`].
pub const EVENT_LEVEL: &str = "EVENT_LEVEL";

/// Decisions that become [`Event`]s.
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

/// Version of [`Config`] and of the verdict counts.
pub const LAYOUT: u32 = 1;

/// Maximum number of connections to the agent that are not yet identified, from the SYN on. Beyond
/// it the newest are refused: no attestation is evicted for another.
pub const MAX_ATTESTATIONS: u32 = 32_768;
/// Maximum number of these per quota cgroup: it takes 128 cgroups to use up all.
pub const MAX_PER_QUOTA_CGROUP: u32 = 256;
/// Level of the quota cgroup below the cgroup of all pods: the pod, or the container for pods of
/// the QoS class that has no cgroup. It is never a cgroup that a pod can make itself.
pub const QUOTA_CGROUP_LEVEL: i32 = 2;
/// Maximum depth of the cgroup of all pods: the node may itself be in a container.
pub const MAX_PODS_LEVEL: i32 = 16;
/// Age at which an attestation may be replaced by another cgroup's of the same address and port,
/// and at which it is swept once no connection waits to be accepted. Its connection was never
/// established: within that time a SYN is sent four times.
pub const ATTESTATION_LIFE_NANOS: u64 = 10_000_000_000;

/// Length of the key in [`maps::TOKEN_KEY`].
pub const TOKEN_KEY_BYTES: usize = 32;

/// Number of counters of attestations: see [`bucket`].
pub const BUCKETS: u32 = 4096;

/// Returns the index of the counter for a quota cgroup. Ids are given out in order, so that two
/// cgroups of a node rarely share a counter.
pub const fn bucket(quota_cgroup: u64) -> u32 {
    (quota_cgroup % BUCKETS as u64) as u32
}

/// Configuration of the programs. They refuse everything unless `layout` is [`LAYOUT`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT`]; zero in a map that was never written.
    pub layout: u32,
    /// The address of the node that the agent listens on, in network byte order.
    pub host_v4: u32,
    /// The port that the agent listens on, in network byte order.
    pub port: u16,
    /// One of [`host_network`]: the treatment of `hostNetwork` pods that are not in
    /// [`maps::HOST_PODS`].
    pub host_network: u16,
    /// One of [`egress`]: the treatment of packets to the metadata service.
    pub egress: u16,
    /// Zero.
    pub reserved: u16,
    /// Cookie of the node's network namespace, by which sockets of `hostNetwork` pods are
    /// recognized.
    pub host_netns_cookie: u64,
    /// Id of the cgroup of all pods, which the programs are attached to.
    pub pods_cgroup: u64,
}

impl Config {
    /// The content of a map that was never written.
    pub const NONE: Self = Self {
        layout: 0,
        host_v4: 0,
        port: 0,
        host_network: 0,
        egress: 0,
        reserved: 0,
        host_netns_cookie: 0,
        pods_cgroup: 0,
    };
}

/// Treatment of a packet that a pod sends to the metadata service.
pub mod egress {
    /// The packet is dropped.
    pub const GUARDED: u16 = 0;
    /// The packet is sent.
    pub const OPEN: u16 = 1;
}

/// Treatment of a connect to the metadata service from the node's network namespace.
pub mod host_network {
    /// It reaches the real metadata service.
    pub const REAL: u16 = 0;
    /// It is refused.
    pub const REFUSED: u16 = 1;
}

/// Target of the connects of one `hostNetwork` pod to the metadata service.
pub mod host_pod {
    /// The real metadata service.
    pub const REAL: u32 = 1;
    /// The agent, as for other pods.
    pub const AGENT: u32 = 2;
}

/// Maximum number of `hostNetwork` pods with an entry of their own.
pub const MAX_HOST_PODS: u32 = 1024;

/// Remote end of a connection to the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Source address, in network byte order.
    pub address: u32,
    /// Source port, in network byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// The process that made a connection to the agent, as the kernel attests it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attestation {
    /// Cgroup of the connecting socket.
    pub cgroup: u64,
    /// The cgroup whose quota the attestation counts against: that of the pod or container. Cgroups
    /// that these can make themselves are below it.
    pub quota_cgroup: u64,
    /// Time at which the SYN left, by `CLOCK_MONOTONIC`, in nanoseconds.
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
    /// Id of the cgroup that the decision is about.
    pub cgroup: u64,
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "aya::Pod is an unsafe trait; repr(C) and the field types satisfy it"
)]
mod user {
    use super::{Attestation, Config, Peer};

    // SAFETY: repr(C), integers only, no padding (checked below): any bytes are a value, and all
    // bytes are initialized.
    unsafe impl aya::Pod for Config {}
    // SAFETY: the same as for `Config`.
    unsafe impl aya::Pod for Peer {}
    // SAFETY: the same as for `Config`.
    unsafe impl aya::Pod for Attestation {}
}

const _: () = assert!(size_of::<Config>() == 4 + 4 + 2 + 6 + 8 + 8);
const _: () = assert!(size_of::<Peer>() == 4 + 2 + 2);
const _: () = assert!(size_of::<Attestation>() == 3 * 8);
const _: () = assert!(MAX_PER_QUOTA_CGROUP * 100 < MAX_ATTESTATIONS);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_are_those_of_the_metadata_service() {
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
    fn layouts_of_pinned_maps_match_their_versions() {
        // A changed layout needs a new version, not only another line here.
        let known = [
            (maps::CONFIG, 1, 4, 32, 1),
            (maps::ATTESTATIONS, 1, 8, 24, 32_768),
            (maps::RECORDED, 1, 4, 8, 4096),
            (maps::CONSUMED, 1, 4, 8, 4096),
            (maps::VERDICTS, 1, 4, 8, 30),
            (maps::SOCKETS, 1, 4, 4, 0),
            (maps::HOST_PODS, 1, 8, 4, 1024),
            (maps::CLOSED, 1, 4, 8, 1),
            (maps::TOKEN_KEY, 1, 4, 32, 1),
        ];
        let pinned =
            maps::PINNED.map(|map| (map.name, map.version, map.key, map.value, map.entries));
        assert_eq!(pinned, known);
    }

    #[test]
    fn each_verdict_of_each_hook_has_its_own_count() {
        let indexes = Hook::ALL
            .into_iter()
            .flat_map(|hook| Verdict::ALL.map(|verdict| count_index(hook, verdict) as usize));
        assert!(indexes.eq(0..VERDICTS));
    }

    #[test]
    fn cgroups_created_in_sequence_have_different_counters() {
        assert_ne!(bucket(1 << 40), bucket((1 << 40) + 1));
    }
}
