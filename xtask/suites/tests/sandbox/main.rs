//! Tests in the sandbox: real network namespaces, cgroups, kernel programs, and kiam's programs.
//!
//! Each test has a sandbox of its own. They need root, cgroup2 and BPF, and what `cargo xtask test`
//! builds and installs; a test that lacks one of these panics and names it.

#![expect(
    clippy::unwrap_used,
    reason = "a test, and a helper of tests, fails by it"
)]

mod attach;
mod attack;
mod bad_input;
mod bad_peer;
mod commands;
mod core_files;
mod credentials;
mod guards;
mod host_network;
mod iptables;
mod load;
mod nodes_and_pods;
mod restarts;
mod sdk;
mod self_check;
mod surface;
