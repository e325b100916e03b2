//! Benchmarks of kiam, each a command of `cargo xtask`.
//!
//! ```text
//! bench         the cost of kiam, in one report
//! bench_ebpf    the cost of the kernel programs to other traffic
//! instructions  the instructions of a request, against a budget
//! load          a server with a large cluster's pods and agents
//! ```

pub mod bench;
pub mod bench_ebpf;
pub mod instructions;
pub mod load;
