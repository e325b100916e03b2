//! Verdicts of the programs, which count them by hook.

/// Attachment point of a program that counts its verdicts.
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
    /// All hooks, in the order of their indexes.
    pub const ALL: [Self; 3] = [Self::Connect4, Self::Connect6, Self::Egress];

    /// Returns the value of the label `hook`.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Egress => "egress",
        }
    }
}

/// Verdict of a program on a connect or a packet.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A connect to the metadata service was redirected to the agent.
    Redirected = 0,
    /// A connect to the metadata service was refused: it is not TCP to port 80.
    ConnectRefused = 1,
    /// A connect was refused: there is no configuration.
    Unconfigured = 2,
    /// A socket of a `hostNetwork` pod was let through to the metadata service.
    HostNetwork = 3,
    /// A packet to the metadata service was dropped.
    PacketDropped = 4,
    /// A connection to the agent was attested.
    Attested = 5,
    /// A SYN to the agent was dropped: no TCP socket of that address and port sent it.
    Forged = 6,
    /// A SYN to the agent was dropped: an attestation of another cgroup for the same address and
    /// port has not been consumed yet.
    Contested = 7,
    /// A SYN to the agent was dropped: the quota of its pod or container is used up.
    Flooding = 8,
    /// A SYN to the agent was dropped: there is no space for another attestation.
    Overflow = 9,
}

impl Verdict {
    /// All verdicts, in the order of their indexes.
    pub const ALL: [Self; 10] = [
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
    ];

    /// Returns whether the connect was refused or the packet dropped.
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::Redirected | Self::HostNetwork | Self::Attested)
    }

    /// Returns the value of the label `verdict`.
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
        }
    }
}

/// Number of verdict counts.
pub const VERDICTS: usize = Hook::ALL.len() * Verdict::ALL.len();

/// Returns the index of the count of a verdict at a hook.
pub const fn count_index(hook: Hook, verdict: Verdict) -> u32 {
    hook as u32 * Verdict::ALL.len() as u32 + verdict as u32
}
