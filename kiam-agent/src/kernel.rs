//! The kernel's part: the programs that redirect and guard the pods, and their word on who calls.
//!
//! ```text
//! object      the programs, embedded when the agent is built
//! programs    loaded, told where the agent is, attached to the pods' cgroup
//! links       their places there
//! pins        where these and the maps outlive the agent
//! attestor    which cgroup made a connection
//! host_pods   which hostNetwork pods get their own role, and which keep the node's
//! cgroup      which pod a cgroup is of
//! netns       the agent's own network namespace
//! metrics     what the programs count
//! events      what they decide, one by one
//! closed      how many connections from before them were closed
//! token_key   the key of tokens, which outlives the agent
//! sys         the kernel's calls that aya has not
//! ```
//!
//! `unsafe` is here, where the kernel's ABI asks for it, and nowhere else in the agent.

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

pub use attestor::{Attested, Attestor};
pub use closed::ClosedCount;
pub use error::KernelError;
pub use events::{Events, KernelLog};
pub use host_pods::{Choices, Exemption, HostNetwork, HostPods, Lent};
pub use links::{Attached, Others, guarded, others};
pub use metrics::KernelMetrics;
pub use netns::{NetnsError, own_netns_cookie};
pub use pins::{BPFFS, PinsError, Removed, cleanup, pinned};
pub use programs::{Programs, Redirect, verify};
pub use token_key::token_key;
