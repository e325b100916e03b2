//! The kernel programs: loading and attaching them, reading what they record.
//!
//! ```text
//! object      the programs, embedded at build time
//! programs    loading, configuring and attaching the programs
//! links       attachment to the cgroup of all pods
//! pins        links and maps that outlive the agent
//! attestor    the cgroup that made a connection
//! host_pods   hostNetwork pods: which use the agent, which the real metadata service
//! cgroup      the pod that a cgroup belongs to
//! netns       the agent's network namespace
//! metrics     verdicts of the programs, as metrics
//! events      decisions of the programs, as log messages
//! closed      count of closed connections
//! token_key   the key of IMDSv2 tokens, which outlives the agent
//! sys         commands of bpf(2) that aya lacks
//! ```
//!
//! All `unsafe` code of the agent is in this module, where the kernel's ABI requires it.

mod attestor;
pub mod cgroup;
mod closed;
mod error;
mod events;
mod host_pods;
mod links;
mod metrics;
mod netns;
mod object;
mod pins;
mod programs;
mod sys;
mod token_key;

pub use attestor::Attested;
pub(crate) use attestor::Attestor;
pub(crate) use closed::ClosedCount;
pub use error::KernelError;
pub use events::KernelLog;
pub use host_pods::HostNetwork;
pub(crate) use host_pods::{Choices, Exemption, HostPods};
pub use links::guarded;
pub(crate) use links::{Attached, ForeignPrograms, foreign_programs};
pub(crate) use metrics::KernelMetrics;
pub(crate) use netns::NetnsError;
pub use netns::own_netns_cookie;
pub use pins::{BPFFS, PinsError, Removed, cleanup, pinned};
pub(crate) use programs::verify;
pub use programs::{Programs, Redirect};
pub use token_key::token_key;
