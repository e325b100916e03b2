//! The kernel programs, loaded, attached and attacked: with real network namespaces and cgroups.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod agent;
mod attest;
mod bypass_counter;
mod capabilities;
mod client;
mod fixture;
mod frozen_clock;
mod guard;
mod hang_limit;
mod iptables;
mod listener;
mod pins;
mod redirect;
mod route_guard;
