//! Benchmarks of kiam, each a command of `cargo xtask`.
//!
//! ```text
//! bench         what kiam costs, in one report
//! bench_ebpf    what the kernel programs cost other traffic
//! instructions  how many a request takes, against a budget
//! load          a server with a large cluster's pods and agents
//! ```

pub mod bench;
pub mod bench_ebpf;
pub mod instructions;
pub mod load;
