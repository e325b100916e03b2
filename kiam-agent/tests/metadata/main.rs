//! The metadata surface, through real sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod allocations;
mod beside;
mod connections;
mod fuzz;
mod passthrough;
mod service;
mod surface;
mod tokens;
mod waiting;
