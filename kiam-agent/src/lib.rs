//! The agent of kiam: one per node, between the node's pods and the metadata service.
//!
//! ```text
//!  a pod's connection ──► kernel ──► metadata ◄── view ◄── stream ◄── server
//!                           │           │
//!                           └─► caller ─┘  which pod is it?
//! ```
//!
//! A library for the program and its tests only: public items are those that tests and benchmarks
//! use.

pub mod app;
pub mod args;
pub mod bypass_counter;
pub mod caller;
pub mod commands;
mod doctor;
pub mod iptables;
pub mod kernel;
pub mod metadata;
mod netlink;
mod old_connections;
mod reconcile;
pub mod route_guard;
mod self_check;
mod status;
pub mod stream;
pub mod token_key;
pub mod view;
