//! kiam's agent: one per node, between the node's pods and the metadata service.
//!
//! ```text
//!  a pod's connection ──► kernel ──► metadata ◄── view ◄── stream ◄── server
//!                           │           │
//!                           └─► caller ─┘  which pod is it?
//! ```

pub mod app;
pub mod args;
pub mod bypass_counter;
pub mod caller;
pub mod commands;
pub mod doctor;
pub mod iptables;
pub mod kernel;
pub mod metadata;
mod netlink;
pub mod old_connections;
pub mod route_guard;
pub mod self_check;
pub mod status;
pub mod stream;
pub mod token_key;
pub mod view;
